"""Every error code with what it means and what to do; ``ferrum explain CODE`` prints it."""

from __future__ import annotations

ERROR_CODES: dict[str, str] = {
    "bad-address": (
        "--host names no address of this machine, or a name that cannot be resolved. 127.0.0.1 is this machine only, 0.0.0.0 "
        "all of its addresses."
    ),
    "bad-tls": (
        "--tls-cert and --tls-key are not a certificate chain and its private key in PEM, or the key has a password. "
        "openssl x509 -in FILE -noout -text shows what a certificate holds."
    ),
    "batch-output": (
        "The output of ferrum batch exists and is not the beginning of this input's answers, so the batch cannot be resumed into "
        "it. Name another file with -o, or remove this one."
    ),
    "bad-chat-template": (
        "The model's chat template is not valid jinja2, or asks for something that the sandbox forbids. The message has the line."
    ),
    "bad-message": (
        "Two processes of ferrum did not understand each other; mixed versions are the usual reason. Restart the server."
    ),
    "bad-option": "An option's value is not accepted. The message names the option and what it takes.",
    "bad-path": "A name inside a file would leave its folder or is not a plain name; nothing was opened.",
    "bad-tokenizer": "tokenizer.json cannot be read by the tokenizers package, or does not fit the model.",
    "checkpoint-corrupt": (
        "A safetensors file, its index, or a GGUF, ONNX or .pt2 file contradicts itself: sizes, offsets, shapes or names. "
        "Nothing was read from it. Download the file again."
    ),
    "checkpoint-missing": (
        "The folder lacks weights: model.safetensors, or the files that model.safetensors.index.json names. Finish the "
        "download, or check the path."
    ),
    "checkpoint-pickle": (
        "The folder has pickled weights only (.bin, .pt), or a .pt2 file has one. Opening a pickle can run any code, so they are "
        "not read. Use a safetensors version of the model."
    ),
    "checkpoint-unreadable": (
        "The system could not read a file of the checkpoint. Check permissions and the disk, or download it again."
    ),
    "code-unloadable": (
        "The system's loader refused the pack's code, most likely because it was made for another system. Compile the model here."
    ),
    "compiler-died": (
        "The compiler's process ended without an answer, most likely because memory ran out. Free some, or compile on a "
        "larger machine and bring the .fpk."
    ),
    "compiler-missing": (
        "A model has to be compiled, but this installation is the runtime only. pip install 'ferrum-infer[compile]', or bring"
        " a .fpk that was compiled elsewhere."
    ),
    "config-bad-value": (
        "A value in ferrum.toml or in a FERRUM_* variable has the wrong type or is out of range. The message names the key; "
        "ferrum VERB --help lists what is accepted."
    ),
    "config-missing": (
        "--config or FERRUM_CONFIG names a settings file that does not exist. Without either, ./ferrum.toml is read when it "
        "is there."
    ),
    "config-syntax": "The settings file is not valid TOML. The message has the parser's line and column.",
    "config-unknown-key": (
        "ferrum.toml has a table that is no verb, a key that is no option of the verb, or an option that is accepted on the "
        "command line only (such as --trust, which a file must not switch on)."
    ),
    "config-unreadable": "config.json is missing or is not JSON. Check the folder, or pull the model again.",
    "config-unsupported": (
        "config.json asks for things that this version does not compile. All of them are listed at once; ferrum check MODEL "
        "repeats the list."
    ),
    "contract-mismatch": "The code and the weights in a pack were made for different tensors. Compile the model again.",
    "device-failed": (
        "The device could not start or a step on it failed: the system refused threads, or a GPU reported an error. The message "
        "has the driver's words; after a failed step on a GPU nothing else runs in the same process."
    ),
    "device-missing": (
        "The pack is for a device that is not in this machine, or what drives it is not installed: the NVIDIA driver, macOS, or "
        "a Python package that the message names. ferrum doctor lists what is there."
    ),
    "disk-full": (
        "The disk has no room for what is being written. Nothing half-written is left under the final name. Free some space, "
        "or choose another disk with --home, HF_HOME or -o."
    ),
    "dtype-unsupported": "A tensor is stored in a number format that is not read as floats. The message lists the ones that are.",
    "duplicate-request": "Two running requests have the same id; in a program, use each id once.",
    "engine-busy": "Something needs the engine alone, and requests are running. Repeat it when they have ended.",
    "engine-closed": "The engine was shut down while it was being used.",
    "engine-died": (
        "The engine's process ended unexpectedly, for instance because the system was out of memory. The server's log has "
        "more; start it again."
    ),
    "engine-draining": "The server is ending and takes no new requests.",
    "engine-failed": (
        "A step of the engine failed. Requests that ran were ended; start the server again, and report it with the log."
    ),
    "export-failed": (
        "torch.export could not trace the model's module, or torch cannot read a .pt2 file. The message has torch's reason; "
        "data-dependent control flow is the usual one."
    ),
    "files-full": (
        "The server's folder of files and batches is at its bound: 1,000 files, 1,000 batches, 1 GiB. Delete files that are no "
        "longer needed, or give --batch-dir another folder."
    ),
    "file-missing": (
        "A file that is needed is not there: config.json, the weights, or a shard that the index names. An upload may be "
        "incomplete, or the repository is of another kind."
    ),
    "file-unreadable": "A small file that ferrum needs (a key, a signature) cannot be read or is not what it should be.",
    "format-unsupported": (
        "The file or the weights are in a format that this version does not read, or the file is a part of a model only. "
        "docs/checkpoints.md lists what is read."
    ),
    "frame-too-large": "A message between server and engine exceeds its limit, for instance because of an enormous prompt.",
    "gated": (
        "The repository's owner wants a licence to be accepted first. Accept it on the hub's page with your account, create a"
        " token and set HF_TOKEN."
    ),
    "grammar-failed": (
        "The form that the answer must have led nowhere, or following it took more work than a step may cost. Make the schema or "
        "the grammar smaller."
    ),
    "grammar-limit": (
        "A schema, a regex or a grammar took more than its share of time or memory to compile. Make it smaller: fewer "
        "alternatives, shorter lists, less nesting."
    ),
    "grammar-missing": "Structured answers need the package llguidance, which this installation lacks. pip install llguidance.",
    "grammar-refused": (
        "A schema, a regex or a grammar is not valid, or asks for what cannot be guaranteed while tokens are chosen. The message "
        "names the keyword; docs/structured.md lists those that are served."
    ),
    "graph-invalid": (
        "A graph breaks a rule of the IR: a name that is not defined, a wrong shape or dtype, an unknown attribute. After a "
        "stage of the compiler this is a fault of that stage."
    ),
    "graph-text": "The text form of a graph cannot be parsed. The message names the line.",
    "graph-unreadable": "A dumped graph cannot be read or is too large. Name a dump that the same version wrote.",
    "hash-mismatch": (
        "The bytes that arrived differ from the hash that the hub gave. They were thrown away; pull again. If it happens "
        "again, something between here and the hub changes them."
    ),
    "hub-answer": "The hub's answer lacks a commit or a hash, without which files cannot be checked. Check HF_ENDPOINT.",
    "hub-unreachable": (
        "The hub could not be reached or did not answer. What was downloaded so far is kept and continued by the next ferrum "
        "pull. HF_ENDPOINT and HF_HUB_OFFLINE change where and whether it is asked."
    ),
    "index-bad": (
        "model.safetensors.index.json cannot be read, or names files that are not plain .safetensors names. Nothing outside "
        "the model's folder is ever opened."
    ),
    "internal": "A fault in ferrum itself. Repeat the command with -vvv to see the traceback, and report it with the command.",
    "invalid-arguments": "The arguments of a tool call in the conversation are not a JSON object.",
    "invalid-option": "An option of the engine or of a device is out of range, or exceeds what the pack was compiled for.",
    "invalid-parameter": "A sampling parameter is out of its range. The message names the parameter and the range.",
    "invalid-text": "The text holds something that cannot be encoded, such as half of a surrogate pair.",
    "invalid-token": "A token id is not in the model's vocabulary.",
    "kernel-unknown": (
        "The pack has no kernel of this name. ferrum explain PACK lists them; a kernel is named by its symbol or its spec."
    ),
    "key-exists": "A key file is already there and is not overwritten. Choose another name.",
    "key-invalid": "A key file is damaged, of another kind, or readable by others. Keys are made with ferrum's own format.",
    "kernel-fault": (
        "A kernel, run on the CPU by the emulator, did what a GPU would not survive: an access outside of its buffers, a barrier "
        "that not all threads reach, a launch beyond the limits. The message names kernel, block and thread."
    ),
    "kv-memory-too-small": (
        "The KV cache would not even hold one sequence. Free memory, give more with --kv-cache-memory, or lower --max-model-len."
    ),
    "manifest-too-large": "The model has more tensors or kernels than the room that the writer reserved for the manifest.",
    "memory-too-small": "A self-test case needs more KV blocks than the device was given.",
    "model-closed": "A model was used after it was closed; in a program, keep the LLM open as long as it is needed.",
    "keys-file": (
        '--api-key-file cannot be read, or is not TOML with a table for each key: [name], key = "…", and as limits '
        "requests_per_minute, concurrent and tokens_per_minute, of which 0 is none."
    ),
    "model-not-found": "There is nothing at the path that was given as a model.",
    "model-unknown": (
        "The name is no alias, folder, pack or repository on the hub. A private repository is reported in the same way: set "
        "HF_TOKEN."
    ),
    "model-unsupported": (
        "The architecture in config.json is not one that this version compiles. docs/adding-a-model.md says how one is added."
    ),
    "no-api-key": (
        "A server that others can reach must ask for a key. Give --api-key (better: FERRUM_API_KEY), or --insecure to allow "
        "everyone."
    ),
    "no-compiler": "There is neither a C compiler nor the ziglang package. pip install ziglang brings one for all targets.",
    "no-messages": "A conversation has to have at least one message.",
    "no-target": "No CPU target fits this machine's architecture. Compile for a machine that has one, with --target.",
    "no-chat-template": (
        "The pack was compiled from a folder without a chat template, so it continues texts and knows no conversations."
    ),
    "no-tokenizer": "The model's folder or file has no tokenizer, so that its pack takes and gives token ids only.",
    "otel-missing": ("--otlp-endpoint needs OpenTelemetry, which only serves that option. pip install 'ferrum-infer[otel]'."),
    "out-of-memory": (
        "Memory that the model needs cannot be reserved. Lower --kv-cache-memory, --max-num-seqs or --max-num-batched-tokens."
    ),
    "pack-closed": "A pack was used after it was closed; in a program, keep it open as long as its views are used.",
    "pack-damaged": (
        "The pack's bytes or records contradict each other: it was cut, changed or mixed from two. The message names the "
        "member and field. Copy it or build it again."
    ),
    "pack-member-missing": "The pack lacks a part that this command needs, such as a chat template or the source of its code.",
    "pack-missing": "There is no file of this name. Packs are made with ferrum compile.",
    "pack-not-trusted": (
        "A pack holds machine code. This one was neither built on this machine by this user nor signed by a trusted key. Put "
        "the builder's .pub file into FERRUM_HOME/trusted, or pass --trust if you know where it came from."
    ),
    "pack-program": "The pack is of something else than a language model; look at its programs with ferrum explain.",
    "pack-section-unknown": (
        "The pack requires a section that this reader does not know, so it cannot be opened safely. Update ferrum."
    ),
    "pack-signature-invalid": (
        "The .sig file next to the pack is damaged or belongs to another pack. Get both again from the same place."
    ),
    "pack-too-new": "The pack was made by a newer ferrum and needs a newer reader. Update ferrum or build the pack again.",
    "pack-unreadable": "The system could not read or map the file. Check permissions, memory and the disk.",
    "pack-verify-failed": "ferrum verify found a check that fails; the table above the message has all of them.",
    "pack-version": "The code inside the pack speaks another version of the interface than this ferrum. Compile the model again.",
    "packs-incomparable": (
        "ferrum diff compares the answers of two packs, which must number the same words alike. --static compares what the packs "
        "hold without running them."
    ),
    "parameter-external": (
        "A parameter of the model is bound when it is loaded or by each request, and no device of this version does that. Give "
        "it a tensor of the checkpoint."
    ),
    "permission": (
        "A file or folder cannot be read or written by this user. Check its owner and mode, or choose another folder with "
        "--home, --cache-dir or -o."
    ),
    "port-busy": "Another program listens on this port. Choose another with --port, or end a server of ferrum with ferrum stop.",
    "port-denied": "Only the administrator may listen on ports below 1024. Use a higher --port and a proxy in front.",
    "prompt-empty": "There is nothing to answer: the prompt has no tokens.",
    "prompt-too-long": "The prompt alone exceeds the context that the pack was compiled for.",
    "proof-failed": (
        "The finished pack computes something else than the graph interpreter, so it was not kept. This is a fault of ferrum "
        "or of the C compiler; report it with the model's config.json."
    ),
    "quality-missing": (
        "The pack says nothing of its quality: nothing in it is quantized, it was compiled with --no-prove or before there were "
        "cards, or the model has no tokenizer to read a text with."
    ),
    "pull-busy": "Another process downloads the same file. Wait for it, or end it; its bytes are kept.",
    "queue-full": "More requests wait than --max-queue allows. Clients are told to come back later.",
    "request-too-long": (
        "Prompt and answer together can never fit into the context or the KV memory. Shorten the prompt, lower max_tokens, or"
        " give more memory."
    ),
    "revision-unknown": "The repository exists, but not this branch, tag or commit.",
    "socket-busy": (
        "The unix socket of --socket cannot be listened on: another server does, or its folder is missing or closed to this user."
    ),
    "stage-unknown": (
        "No stage has this name, or --start-from comes after --stop-after. ferrum explain NAME describes each stage."
    ),
    "stop-timeout": (
        "The server got SIGTERM and did not end in time, most likely because a request is still running. Wait longer with "
        "--wait, or end it with kill -9."
    ),
    "subject-unknown": "ferrum explain was given something that is neither a file nor a stage nor an error code.",
    "system-error": "The operating system refused something and ferrum has no better advice than the system's own words.",
    "tensor-missing": (
        "The checkpoint has no tensor of this name. The configuration and the weights belong to different models, or the "
        "download is incomplete."
    ),
    "text-unreadable": (
        "The file of --text is no plain text in UTF-8, has fewer than two tokens, or is larger than the four megabytes that are "
        "compared in reasonable time."
    ),
    "text-too-long": "The text is longer than any context could be and was not tokenized.",
    "toolchain-failed": (
        "The C compiler refused the generated source. The saved source and the command to repeat it are in the message; this "
        "is a fault of ferrum or of the toolchain."
    ),
    "tokenizer-unsupported": (
        "A GGUF file names its tokenizer, or how text is cut before it, by a name that this version does not know. Guessing "
        "would give other tokens than the model was trained with. Use the model's safetensors, which bring a tokenizer.json."
    ),
    "trust-folder-unsafe": (
        "The folder that says which packs are trusted can be written by others, so it says nothing. chmod 700 it and check "
        "what is in it."
    ),
    "trust-folder-unwritable": (
        "The record that a pack was built here cannot be written. Set FERRUM_HOME to a folder of your own."
    ),
    "unknown-device": "No device has this name. auto takes the one that the pack was compiled for.",
    "variant-unknown": (
        "--variant or FERRUM_VARIANT names a variant of the code that the pack does not have. ferrum explain PACK lists those it "
        "has; without the option the CPU takes the first that it can run."
    ),
    "unknown-target": "--target names no known target. The message lists them; cpu is this machine.",
    "template-failed": (
        "The model's chat template stopped with an error on this conversation: it expects other messages than it got. The "
        "message has jinja2's words."
    ),
    "template-limit": (
        "The model's chat template took more memory or time than a template may (64 MiB, a second, more for long conversations). "
        "Shorten the conversation; a template that does this to short ones is broken or hostile."
    ),
    "template-refused": (
        "The model's chat template refuses the conversation in its own words, often because roles must alternate or a system "
        "message is not foreseen."
    ),
    "unknown-template-option": "A request passes an argument to the chat template that is not on the list of allowed ones.",
    "unknown-tool-format": "The pack names a tool-call format that this version does not know. Update ferrum.",
    "unsafe-format": (
        ".bin, .pt, .pth, .ckpt and .pkl files are pickles, and opening a pickle can run any code. They are never read. "
        "Convert the model to safetensors, or choose a repository that has them."
    ),
    "unsupported-ops": (
        "The traced model uses operations that the compiler does not know. ferrum check MODEL lists all of them with module, "
        "source line and the nearest supported form."
    ),
    "weights-mismatch": (
        "Tensors that the model needs are missing from the checkpoint or have other shapes; the message lists the first ones,"
        " ferrum check all. config.json and weights belong to different models, or the download is incomplete."
    ),
    "write-failed": "The system refused to write. The message has its reason; nothing half-written is left under the final name.",
    "wrong-machine": (
        "The pack was compiled for a CPU with features that this one lacks, for another architecture, another GPU or a newer "
        "macOS. Compile with --target cpu, cuda or metal here, choose the right --target there, or update macOS."
    ),
}
