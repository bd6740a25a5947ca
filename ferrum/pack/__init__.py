"""The ``.fpk`` file: written by the compiler, opened by the runtime. docs/pack-format.md describes the bytes."""
