/* Between a source and the host: sections of shared variables, kernels called with an array of pointers to arguments. */
#pragma once

/* Shared variables of kernel n lie together, so that a block's launch poisons them and nothing else. AddressSanitizer leaves
   variables with a section alone; there they are plain, and not poisoned. */
#if defined(__SANITIZE_ADDRESS__)
#define EMU_SHARED(n) static
#define EMU_SHARED_RANGE(n)
#define EMU_SHARED_START(n) 0
#define EMU_SHARED_STOP(n) 0
#elif defined(__APPLE__)
#define EMU_SHARED(n) static __attribute__((section("__DATA,emu_shared_" #n)))
#define EMU_SHARED_RANGE(n)                                                              \
  extern uint8_t emu_start_##n[] __asm("section$start$__DATA$emu_shared_" #n);           \
  extern uint8_t emu_stop_##n[] __asm("section$end$__DATA$emu_shared_" #n);
#define EMU_SHARED_START(n) emu_start_##n
#define EMU_SHARED_STOP(n) emu_stop_##n
#else
#define EMU_SHARED(n) static __attribute__((section("emu_shared_" #n)))
#define EMU_SHARED_RANGE(n)                                                              \
  extern "C" __attribute__((weak, visibility("hidden"))) uint8_t __start_emu_shared_##n[]; \
  extern "C" __attribute__((weak, visibility("hidden"))) uint8_t __stop_emu_shared_##n[];
#define EMU_SHARED_START(n) __start_emu_shared_##n
#define EMU_SHARED_STOP(n) __stop_emu_shared_##n
#endif

template <class T> struct EmuParam {
  enum { bytes = sizeof(T) };
};
template <class T> struct EmuParam<T *> {
  enum { bytes = -8 };
};
template <int... I> struct EmuIndices {};
template <int N, int... I> struct EmuCount : EmuCount<N - 1, N - 1, I...> {};
template <int... I> struct EmuCount<0, I...> {
  typedef EmuIndices<I...> type;
};

template <class F> struct EmuSignature;
template <class... P> struct EmuSignature<void (*)(P...)> {
  enum { count = sizeof...(P) };
  static inline const int bytes[sizeof...(P) + 1] = {EmuParam<P>::bytes..., 0};
  template <void (*K)(P...), int... I> static inline __attribute__((always_inline)) void call(void **args, EmuIndices<I...>) {
    K(*(P *)args[I]...);
  }
  template <void (*K)(P...)> static void enter(void **args) { call<K>(args, typename EmuCount<sizeof...(P)>::type()); }
};

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
