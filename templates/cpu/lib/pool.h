/* A pool of pinned threads that meet at barriers. The caller of a step is thread 0.
   Waiting spins first (a phase lasts microseconds), then yields, then sleeps on a futex, so that a core taken away by
   another process costs its share and not the whole step. */
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

static void barrier_wait(Barrier *b) {
  if (b->threads == 1) return;
  int32_t generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == b->threads - 1) {
    atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
    signal_change(&b->generation, &b->sleepers);
  } else {
    wait_change(&b->generation, generation, &b->sleepers, b->spin);
  }
}

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
} Pool;

typedef struct Worker {
  Pool *pool;
  int index, cpu;
} Worker;

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
  for (int32_t seen = 0;; ++seen) {
    wait_change(&p->ticket, seen, &p->sleepers, p->spin * 8);
    if (atomic_load(&p->stop)) return NULL;
    p->work(p->arg, w->index);
  }
}

static void pool_stop(Pool *p, int started) {
  atomic_store(&p->stop, 1);
  signal_change(&p->ticket, &p->sleepers);
  for (int i = 1; i < started; ++i) pthread_join(p->ids[i], NULL);
  free(p->ids);
  free(p->workers);
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
  if (!p->ids || !p->workers) return ENOMEM;
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

static void pool_run(Pool *p) {
  signal_change(&p->ticket, &p->sleepers);
  p->work(p->arg, 0);
}
