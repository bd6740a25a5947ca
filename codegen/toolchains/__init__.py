"""A toolchain turns a source into code: ``compile(source) -> bytes``. A failure carries what is needed to repeat it."""
