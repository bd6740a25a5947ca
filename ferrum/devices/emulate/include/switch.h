/* Change of stacks: save the registers that a call must preserve on this stack, keep its pointer in *save, go on where
   `to` was saved. Both sides return from the same call, so the processor predicts the return. */
#pragma once

#if defined(__APPLE__)
#define EMU_SYMBOL(name) "_" name
#else
#define EMU_SYMBOL(name) name
#endif

extern "C" __attribute__((visibility("hidden"))) void emu_switch(void **save, void *to);

#if defined(__x86_64__)
__asm__(".text\n.p2align 4\n" EMU_SYMBOL("emu_switch") ":\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n");

/* A stack that enters `start` when it is switched to; start never returns. */
static void *emu_prepare_stack(char *top, void (*start)(void)) {
  void **sp = (void **)((uintptr_t)top & ~(uintptr_t)63);
  *--sp = 0; /* a call leaves the stack 8 bytes off a multiple of 16 */
  *--sp = (void *)start;
  for (int i = 0; i < 6; ++i) *--sp = 0;
  return sp;
}
#elif defined(__aarch64__)
__asm__(".text\n.p2align 4\n" EMU_SYMBOL("emu_switch") ":\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n  ret\n");

static void *emu_prepare_stack(char *top, void (*start)(void)) {
  char *sp = (char *)((uintptr_t)top & ~(uintptr_t)63) - 160;
  memset(sp, 0, 160);
  *(void **)(sp + 88) = (void *)start; /* x30, where the switch returns to */
  return sp;
}
#else
#error "the emulator knows x86-64 and aarch64"
#endif
