/* A pool of pinned threads that meet at barriers. The caller of a step is thread 0.
   Waiting spins first (a phase lasts microseconds), then yields, then sleeps on a futex, so that a core taken away by
   another process costs its share and not the whole step. A thread that keeps the others waiting for a good part of several
   steps has lost much of its core: it rests for some, as all are faster without it, and is then tried again. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CACHE_LINE 64

typedef struct {
  _Alignas(CACHE_LINE) _Atomic int32_t arrived;
  _Alignas(CACHE_LINE) _Atomic int32_t generation;
  _Atomic int32_t sleepers;
  int32_t threads, spin;
} Barrier;

INLINE void cpu_relax(void) {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic int32_t *word, int32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#else
  (void)word; (void)value;
  sched_yield();
#endif
}

static void futex_wake_all(_Atomic int32_t *word) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
  (void)word;
#endif
}

/* Wait until *word differs from value. */
static void wait_change(_Atomic int32_t *word, int32_t value, _Atomic int32_t *sleepers, int32_t spin) {
  for (int32_t i = 0; i < spin; ++i) {
    if (atomic_load_explicit(word, memory_order_acquire) != value) return;
    cpu_relax();
  }
  for (int i = 0; i < 64; ++i) {
    if (atomic_load_explicit(word, memory_order_acquire) != value) return;
    sched_yield();
  }
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == value) futex_wait(word, value);
  atomic_fetch_sub(sleepers, 1);
}

static void signal_change(_Atomic int32_t *word, _Atomic int32_t *sleepers) {
  atomic_fetch_add(word, 1);
  if (atomic_load(sleepers)) futex_wake_all(word);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What the caller knows of a thread. Times in seconds; `late`: how long others waited for it, in one step. It takes part in
   steps whose ticket is not before `from`, a wish of the caller that holds for all tickets to come, so both always agree. */
typedef struct {
  _Alignas(CACHE_LINE) double arrived, late;
  int32_t late_steps, rest, from;
} Presence;

typedef struct Pool {
  Barrier barrier;
  _Alignas(CACHE_LINE) _Atomic int32_t ticket; /* grows by one for each step */
  _Atomic int32_t sleepers;
  _Atomic int32_t stop;
  int32_t threads, spin;
  void (*work)(void *, int);
  void *arg;
  pthread_t *ids;
  struct Worker *workers;
  Presence *presence;
} Pool;

typedef struct Worker {
  Pool *pool;
  int index, cpu;
} Worker;

INLINE int takes_part(const Pool *p, int thread, int32_t ticket) { return (int32_t)((uint32_t)ticket - (uint32_t)p->presence[thread].from) >= 0; }

static void barrier_wait(Pool *p, int thread) {
  Barrier *b = &p->barrier;
  if (b->threads == 1) return;
  const int32_t generation = atomic_load_explicit(&b->generation, memory_order_relaxed), ticket = atomic_load_explicit(&p->ticket, memory_order_relaxed);
  Presence *const me = &p->presence[thread];
  me->arrived = seconds();
  if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == b->threads - 1) {
    double first = me->arrived;
    for (int i = 0; i < p->threads; ++i)
      if (takes_part(p, i, ticket) && p->presence[i].arrived < first) first = p->presence[i].arrived;
    me->late += me->arrived - first;
    atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
    signal_change(&b->generation, &b->sleepers);
  } else {
    wait_change(&b->generation, generation, &b->sleepers, b->spin);
  }
}

static void pin(int cpu) {
#if defined(__linux__)
  if (cpu < 0) return;
  unsigned long set[16] = {0}; /* the raw system call: no dependence on the C library's cpu_set_t helpers */
  if (cpu >= (int)(sizeof set * 8)) return;
  set[cpu / (8 * sizeof(long))] = 1ul << (cpu % (8 * sizeof(long)));
  syscall(SYS_sched_setaffinity, 0, sizeof set, set);
#else
  (void)cpu;
#endif
}

static void *worker_main(void *argument) {
  Worker *w = argument;
  Pool *p = w->pool;
  pin(w->cpu);
  for (int32_t seen = 0;;) {
    wait_change(&p->ticket, seen, &p->sleepers, p->spin * 8);
    seen = atomic_load(&p->ticket); /* a resting thread may have missed some */
    if (atomic_load(&p->stop)) return NULL;
    if (takes_part(p, w->index, seen)) p->work(p->arg, w->index);
  }
}

static void pool_stop(Pool *p, int started) {
  atomic_store(&p->stop, 1);
  signal_change(&p->ticket, &p->sleepers);
  for (int i = 1; i < started; ++i) pthread_join(p->ids[i], NULL);
  free(p->ids);
  free(p->workers);
  free(p->presence);
}

/* 0, or an errno value when a thread cannot be made. */
static int pool_start(Pool *p, int threads, const int32_t *cpus, int32_t spin, void (*work)(void *, int), void *arg) {
  memset(p, 0, sizeof *p);
  p->threads = p->barrier.threads = threads;
  p->spin = p->barrier.spin = spin;
  p->work = work;
  p->arg = arg;
  p->ids = calloc((size_t)threads, sizeof *p->ids);
  p->workers = calloc((size_t)threads, sizeof *p->workers);
  if (posix_memalign((void **)&p->presence, CACHE_LINE, (size_t)threads * sizeof *p->presence)) p->presence = NULL;
  if (!p->ids || !p->workers || !p->presence) return ENOMEM;
  memset(p->presence, 0, (size_t)threads * sizeof *p->presence);
  for (int i = 1; i < threads; ++i) {
    p->workers[i] = (Worker){p, i, cpus[i]};
    int error = pthread_create(&p->ids[i], NULL, worker_main, &p->workers[i]);
    if (error) {
      pool_stop(p, i);
      return error;
    }
  }
  return 0;
}

/* Whose core was taken, by the waiting in a step of `duration` seconds: a good part of it, and no trifle. Work is shared out in
   pieces, so phases of a prompt end a few hundredths apart without that. The caller never rests: when its core is the one that
   was taken, the last thread does, and leaves it another. */
static void send_to_rest(Pool *p, double duration) {
  enum { STEPS = 3, SHORTEST = 8, LONGEST = 64 };
  int calm = 1;
  for (int i = 0; i < p->threads; ++i) {
    Presence *const late = &p->presence[i], *const who = i ? late : &p->presence[p->threads - 1];
    if (!takes_part(p, i, p->ticket) || late->late < 1e-3 || late->late < 0.2 * duration) {
      late->late_steps = 0;
      continue;
    }
    calm = 0;
    if (++late->late_steps < STEPS && !who->rest) continue;
    who->rest = who->rest ? 2 * who->rest : SHORTEST;
    if (who->rest > LONGEST) who->rest = LONGEST;
    who->from = (int32_t)((uint32_t)p->ticket + 1u + (uint32_t)who->rest);
    late->late_steps = 0;
  }
  if (calm)
    for (int i = 0; i < p->threads; ++i)
      if (takes_part(p, i, p->ticket)) p->presence[i].rest = 0;
}

/* A step on all threads that do not rest; `everyone` calls those back. */
static void pool_run(Pool *p, int everyone) {
  const int32_t next = (int32_t)((uint32_t)p->ticket + 1u);
  const double start = seconds();
  p->barrier.threads = 0;
  for (int i = 0; i < p->threads; ++i) {
    if (everyone || takes_part(p, i, next)) {
      p->presence[i].from = next; /* so that it stays near the ticket, which wraps around */
      p->barrier.threads++;
    }
    p->presence[i].late = 0.0;
  }
  signal_change(&p->ticket, &p->sleepers);
  p->work(p->arg, 0);
  if (p->barrier.threads > 1) send_to_rest(p, seconds() - start);
}
