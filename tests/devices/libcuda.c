/* A stand-in for the driver's library, for the real cuda-bindings to call: host memory as device memory, copies made at once or,
   in a stream that is captured, not at all, kernels that are not run. Every call and its numbers become a line of the file that
   LIBCUDA_LOG names. The structures are the driver's own, as far as the CUDA device fills them. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY (1ll << 30)
#define NOT_FOUND 500

typedef struct { int id; int pad; union { char bytes[64]; int allowed; } value; } Attribute;
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
  Attribute *attributes;
  unsigned count;
} Config;
typedef struct { size_t nbytes; char pad[56]; } Allocation; /* in front of what is given out */

static FILE *file;
static size_t used;
static int capturing;
static char handles[4096];
static unsigned made;

#define SAY(...) (fprintf(file, __VA_ARGS__), fputc('\n', file), fflush(file), 0)

static void *handle(void) { return &handles[++made % sizeof handles]; }
static void *take(size_t nbytes) {
  Allocation *a = calloc(1, sizeof *a + nbytes);
  a->nbytes = nbytes;
  return a + 1;
}

static int init(unsigned flags) { return SAY("cuInit"); }
static int driver_version(int *v) { *v = 13000; return SAY("cuDriverGetVersion"); }
static int device_count(int *n) { *n = 1; return SAY("cuDeviceGetCount"); }
static int device(int *d, int ordinal) { *d = ordinal; return SAY("cuDeviceGet"); }
static int device_name(char *name, int size, int d) { snprintf(name, size, "Fake GPU"); return SAY("cuDeviceGetName"); }
static int device_memory(size_t *n, int d) { *n = MEMORY; return SAY("cuDeviceTotalMem"); }
static int device_attribute(int *v, int what, int d) {
  *v = what == 75 ? 9 : what == 76 ? 0 : 4;
  return SAY("cuDeviceGetAttribute %d", what);
}
static int retain(void **context, int d) { *context = handle(); return SAY("cuDevicePrimaryCtxRetain"); }
static int release(int d) { return SAY("cuDevicePrimaryCtxRelease"); }
static int set_current(void *context) { return context ? SAY("cuCtxSetCurrent") : 201; }

static int load(void **library, const void *code, int *options, void **values, unsigned n, int *more, void **others, unsigned m) {
  *library = handle();
  return SAY("cuLibraryLoadData %u %u", n, m);
}
static int unload(void *library) { return SAY("cuLibraryUnload"); }
static int get_kernel(void **kernel, void *library, const char *name) {
  *kernel = strdup(name);
  return SAY("cuLibraryGetKernel %s", name);
}
static int get_function(void **function, void *kernel) { *function = kernel; return SAY("cuKernelGetFunction"); }
static int set_attribute(void *function, int what, int value) {
  return SAY("cuFuncSetAttribute %s %d %d", (char *)function, what, value);
}

static int memory_info(size_t *left, size_t *total) {
  *left = MEMORY - used, *total = MEMORY;
  return SAY("cuMemGetInfo");
}
static int allocate(uint64_t *pointer, size_t nbytes) {
  *pointer = (uint64_t)(uintptr_t)take(nbytes);
  used += nbytes;
  return SAY("cuMemAlloc %zu", nbytes);
}
static int release_memory(uint64_t pointer) {
  Allocation *a = (Allocation *)(uintptr_t)pointer - 1;
  used -= a->nbytes;
  free(a);
  return SAY("cuMemFree");
}
static int allocate_host(void **pointer, size_t nbytes, unsigned flags) {
  *pointer = take(nbytes);
  return SAY("cuMemHostAlloc %zu", nbytes);
}
static int free_host(void *pointer) { free((Allocation *)pointer - 1); return SAY("cuMemFreeHost"); }
static int set_bytes(uint64_t to, unsigned char value, size_t n, void *stream) {
  memset((void *)(uintptr_t)to, value, n);
  return SAY("cuMemsetD8Async %zu", n);
}
static void copy(uint64_t to, uint64_t from, size_t n) {
  if (!capturing) memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, n);
}
static int to_device(uint64_t to, const void *from, size_t n, void *stream) {
  copy(to, (uintptr_t)from, n);
  return SAY("cuMemcpyHtoDAsync %zu", n);
}
static int to_host(void *to, uint64_t from, size_t n, void *stream) {
  copy((uintptr_t)to, from, n);
  return SAY("cuMemcpyDtoHAsync %zu", n);
}
static int within(uint64_t to, uint64_t from, size_t n, void *stream) { copy(to, from, n); return SAY("cuMemcpyDtoDAsync %zu", n); }

static int make_stream(void **stream, unsigned flags) { *stream = handle(); return SAY("cuStreamCreate %u", flags); }
static int destroy_stream(void *stream) { return SAY("cuStreamDestroy"); }
static int wait_stream(void *stream) { return SAY("cuStreamSynchronize"); }
static int begin_capture(void *stream, int mode) { capturing = 1; return SAY("cuStreamBeginCapture %d", mode); }
static int end_capture(void *stream, void **graph) { capturing = 0, *graph = handle(); return SAY("cuStreamEndCapture"); }
static int instantiate(void **made, void *graph, unsigned long long flags) { *made = handle(); return SAY("cuGraphInstantiate"); }
static int destroy_graph(void *graph) { return SAY("cuGraphDestroy"); }
static int destroy_executable(void *graph) { return SAY("cuGraphExecDestroy"); }
static int upload(void *graph, void *stream) { return SAY("cuGraphUpload"); }
static int launch_graph(void *graph, void *stream) { return SAY("cuGraphLaunch"); }
static int make_event(void **event, unsigned flags) { *event = handle(); return SAY("cuEventCreate %u", flags); }
static int destroy_event(void *event) { return SAY("cuEventDestroy"); }
static int record(void *event, void *stream) { return SAY("cuEventRecord"); }
static int wait_event(void *event) { return SAY("cuEventSynchronize"); }
static int elapsed(float *milliseconds, void *a, void *b) { *milliseconds = 1; return SAY("cuEventElapsedTime"); }

static int launch(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                  void *stream, void **params, void **extra) {
  return SAY("cuLaunchKernel %s %u %u %u %u %u %u %u", (char *)f, gx, gy, gz, bx, by, bz, shared);
}
static int launch_with(const Config *c, void *f, void **params, void **extra) {
  return SAY("cuLaunchKernelEx %s %u %u %u %u %u %u %u %u %d %d", (char *)f, c->grid[0], c->grid[1], c->grid[2], c->block[0],
             c->block[1], c->block[2], c->shared, c->count, c->attributes[0].id, c->attributes[0].value.allowed);
}

static const struct { const char *name; void *function; } table[] = {
    {"cuInit", init}, {"cuDriverGetVersion", driver_version}, {"cuDeviceGetCount", device_count}, {"cuDeviceGet", device},
    {"cuDeviceGetName", device_name}, {"cuDeviceTotalMem", device_memory}, {"cuDeviceGetAttribute", device_attribute},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuDevicePrimaryCtxRelease", release}, {"cuCtxSetCurrent", set_current},
    {"cuLibraryLoadData", load}, {"cuLibraryUnload", unload}, {"cuLibraryGetKernel", get_kernel},
    {"cuKernelGetFunction", get_function}, {"cuFuncSetAttribute", set_attribute}, {"cuMemGetInfo", memory_info},
    {"cuMemAlloc", allocate}, {"cuMemFree", release_memory}, {"cuMemHostAlloc", allocate_host}, {"cuMemFreeHost", free_host},
    {"cuMemsetD8Async", set_bytes}, {"cuMemcpyHtoDAsync", to_device}, {"cuMemcpyDtoHAsync", to_host},
    {"cuMemcpyDtoDAsync", within}, {"cuStreamCreate", make_stream}, {"cuStreamDestroy", destroy_stream},
    {"cuStreamSynchronize", wait_stream}, {"cuStreamBeginCapture", begin_capture}, {"cuStreamEndCapture", end_capture},
    {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphDestroy", destroy_graph}, {"cuGraphExecDestroy", destroy_executable},
    {"cuGraphUpload", upload}, {"cuGraphLaunch", launch_graph}, {"cuEventCreate", make_event}, {"cuEventDestroy", destroy_event},
    {"cuEventRecord", record}, {"cuEventSynchronize", wait_event}, {"cuEventElapsedTime", elapsed}, {"cuLaunchKernel", launch},
    {"cuLaunchKernelEx", launch_with},
};

/* How the bindings find every other function. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
  if (!file) file = fopen(getenv("LIBCUDA_LOG"), "w");
  *function = 0;
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
    if (!strcmp(name, table[i].name)) *function = table[i].function;
  if (status) *status = !*function;
  return *function ? 0 : NOT_FOUND;
}
