#!/usr/bin/env python3
"""Do the tests notice a wrong gradient? Changes one backward statement at a time and runs them.

    python3 tests/mutate.py [--seed N] [--samples 50] [--list] [--only NAME] [--timeout 120] [--file dreambooth_cuda.cu]

1. Finds the statements of dreambooth.h that carry gradients: those in functions of [DB-02] to [DB-04] whose name has
   back, dx, dw, grad, recompute, again, forget, cheap, in_place, written_over or adamw in it, and the helpers that the convolution's backward shares with its
   forward. Left out: plain declarations, returns, and the computation of sizes and scratch memory.
2. Draws `samples` of them with the seed, and one change for each: a sign flipped, + and - swapped, a term or factor
   dropped, += turned into =, an index moved by one, a condition or an `add` flag turned around, the statement left out.
3. Writes the changed header to a temporary folder, compiles the tests against it and runs them, until one fails.

The tests are compiled with -O1 -DDB_NO_SIMD first: a kernel's body is written once for all instruction sets, so the
scalar one shows nearly every change, and compiles in 3 s instead of 12. What survives that (the ends of vectors can) is
tried again with all of them and the address sanitizer. A change that the compiler refuses is not counted; another one of that statement is drawn.

Of dreambooth_cuda.cu it takes the kernels and all functions for the device, forward ones too, with what they return and
where they read and write; the test is test_cuda, on the processor. The PTX functions have twins there and are left out.

Prints one line for each: `caught` with the first FAIL line (or how the test died) or `SURVIVED`; then the survivors
again, and `N caught of M`. The exit status is 0 if all were caught.
"""
import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TESTS = ["test_ops", "test_backend", "test_networks", "test_metrics"]
NAME = re.compile(r"back|dx|dw|grad|recompute|again|forget|cheap|in_place|written_over|adamw|pack_conv|fill_line|conv_narrow|transpose|column_sums")
SKIP = re.compile(r"measuring|_bytes|db__scratch|DB__CEIL_DIV|DB__ROUND_UP|DB__PARALLEL|db__shape_fail|db__fail|\(void\)|^return\b|"
                  r"^(break|continue)\b|^case\b|^switch\b|"
                  r"^(v\.K|n_panels|ldc|ld_columns|strip_rows|k_image|k_rows|per_group|blocks|n_groups|acc_floats|parts|oc_step|n_oc)\b")
DECLARATION = re.compile(r"^(static |const |unsigned )*(db_\w+|size_t|int|long|char|float|double|DB__\w+|uint\w+)\s+\**\s*\w+\s*(=|,|;|\[|$)")
FLOATS = re.compile(r"^(const )*(float|double|DB__V)\s")
DEVICE = re.compile(r"__global__|__device__")
CUDA_SKIP = re.compile(r"\(void\)|DB_LAUNCH|__shared__|^(break|continue)\b|^case\b|^switch\b")
CUDA = False  # --file is dreambooth_cuda.cu


def blank(text):
    """Comments, strings and preprocessor lines as spaces: the same length, the structure only."""
    def spaces(m): return re.sub(r"[^\n]", " ", m.group())
    text = re.sub(r"__launch_bounds__\(\d+\)", spaces, text)
    text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", spaces, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", spaces, text, flags=re.M)


def sections(text):
    """The parts of the file to look at: [DB-02] up to [DB-05], and [DB-03a]; of CUDA what follows the PTX functions."""
    if CUDA: return [(text.index("/* ---- helpers of the host part"), len(text))]
    def find(tag): return [m.start() for m in re.finditer(r"^/\* ==== \[" + tag + r"\]", text, flags=re.M)]
    parts = [(find("DB-02")[0], find("DB-05")[0])]
    for start in find("DB-03a"):
        if not parts[0][0] <= start < parts[0][1]: parts.append((start, len(text)))
    return parts


def functions(text, code):
    """(name, start of the body, its end) of the functions whose name says gradient."""
    for start, end in sections(text):
        for m in re.finditer(r"^(?=\w)[^;{}#]*?\b(?:DB__FN\((\w+)\)|(\w+))\s*\([^;{}]*\)\s*\n?\{", code[start:end], flags=re.M):
            at, depth = start + m.end(), 1
            while depth and at < len(code):
                depth += {"{": 1, "}": -1}.get(code[at], 0)
                at += 1
            name = m.group(1) or m.group(2)
            if DEVICE.search(m.group()) if CUDA else NAME.search(name): yield name, start + m.end(), at - 1


def closing(code, at):
    """The place after the parenthesis that closes the one at `at`."""
    depth = 0
    for k in range(at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[k], 0)
        if depth == 0: return k + 1
    return len(code)


def statements(text, code):
    """(function, start, end, kind) of statements and of the conditions in front of them."""
    skip = CUDA_SKIP if CUDA else SKIP
    for name, begin, end in functions(text, code):
        at = begin
        while at < end:
            if code[at] in " \t\n;{}":
                at += 1
                continue
            stop, depth = at, 0
            while stop < end and (depth or code[stop] not in ";{}"):
                depth += {"(": 1, ")": -1}.get(code[stop], 0)
                stop += 1
            while True:  # headers: for (...), if (...), else
                m = re.match(r"(for|if|while|switch|DB__CU_EACH)\s*\(|else\b|do\b|DB__(?:CU_)?UNROLL\b", code[at:stop])
                if not m: break
                after = closing(code, at + m.end() - 1) if m.group(1) else at + m.end()
                if m.group(1) == "if" and not skip.search(text[at:after]):
                    yield name, at + m.end(), after - 1, "condition"
                at = after
                while at < stop and code[at] in " \t\n": at += 1
            s = code[at:stop].strip()
            floats = (CUDA and (DECLARATION.match(s) or s.startswith("return")) or FLOATS.match(s)) and \
                re.search(r"(=|return)[^;]*([-+*/?]|DB__v|->)", s)
            if s and not skip.search(s) and ("=" in s or "(" in s) and (floats or not DECLARATION.match(s)):
                yield name, at, stop, "declaration" if floats else "statement"
            at = stop + 1


def changes(s, kind):
    """Every change of statement (or condition) s: (what, new text)."""
    out = []

    def each(pattern, what, new):
        for m in re.finditer(pattern, s): out.append((what, s[:m.start()] + m.expand(new) + s[m.end():]))

    if kind == "condition":
        out.append(("condition turned around", "!(" + s + ")"))
        each(r"&&", "&& for ||", "||")
        return out
    each(r" \+= ", "+= for =", " = ")
    each(r" \+= ", "+= for -=", " -= ")
    each(r" \+ ", "+ for -", " - ")
    each(r" - ", "- for +", " + ")
    each(r" \+ [\w.\[\]>()-]+(?=[;,)\s]|$)", "a term dropped", "")
    each(r" \* (?=[\w(])", "* for +", " + ")
    each(r" \* [\w.]+(\[[^\[\]]*\])?(?=[;,)\s]|$)", "a factor of 1", "")
    each(r" / (?=[\w(])", "/ for *", " * ")
    each(r"\[([^\[\]]+)\]", "an index moved by one", r"[\1 + 1]")
    each(r"\bDB__vadd\(", "+ for -", "DB__vsub(")
    each(r"\bDB__vsub\(", "- for +", "DB__vadd(")
    each(r"\bDB__vmul\(", "* for +", "DB__vadd(")
    each(r"\bDB__vfma\((\w+), (\w+), (\w+)\)", "a term dropped", r"DB__vmul(\1, \2)")
    each(r"\bDB__vfma\((\w+), (\w+), (\w+)\)", "a sign flipped", r"DB__vsub(\3, DB__vmul(\1, \2))")
    each(r", (add|c->i\[\d\])\)", "add flag turned around", r", !\1)")
    each(r" = add\b(\w*)", "add flag turned around", r" = !add\1")
    each(r" \? ([^?:]+) : ([^?:;]+)", "a choice swapped", r" ? \2 : \1")
    if kind == "statement":
        m = re.match(r"([^=;()]*[^=!<>+*/-]) = (?![-\w>.\[\]]*arg)([^=,;]+)$", s)
        if m and m.group(2).strip() != "0" and not re.search(r"\b(arg|made|node|id|rows|at|dim|n_dims)\b", m.group(1)):
            out.append(("a sign flipped", f"{m.group(1)} = -({m.group(2).strip()})"))
        if re.match(r"[\w>.()\[\]-]*(\(|.*=)", s): out.append(("left out", "(void)0"))
    return out


def run_test(program, test, timeout):
    """None if the test passes, else (test, why not), as soon as one line says so. Its limit is processor time: others may be
    using the machine."""
    p = subprocess.Popen([program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
                         env=dict(os.environ, OMP_WAIT_POLICY="passive"),
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (timeout, timeout + 5)))
    with p:
        for line in p.stdout:
            if line.startswith("FAIL"):
                p.kill()
                return test, line.strip()
    if p.returncode == -signal.SIGXCPU: return test, f"ran longer than {timeout} s"
    return (test, f"died with status {p.returncode}") if p.returncode else None


def compile_with(flags):
    """None, or why the compiler refuses."""
    r = subprocess.run(flags, capture_output=True, text=True)
    return ("compiler", r.stderr.strip().splitlines()[0] if r.stderr else "?") if r.returncode else None


def build_and_run_cuda(source, folder, timeout):
    """The same for dreambooth_cuda.cu and test_cuda, whose own object stays."""
    test, backend, program = (os.path.join(folder, name) for name in ("test.o", "cuda.o", "test_cuda"))
    with open(os.path.join(folder, "dreambooth_cuda.cu"), "w") as f: f.write(source)
    why = None
    if not os.path.exists(test):
        why = compile_with([os.environ.get("CC", "cc"), "-std=c99", "-O1", "-w", "-fopenmp", "-DDB_NO_SIMD", "-DTEST_CUDA", "-DCUDA_ON_HOST", "-I" + ROOT,
                            "-I" + os.path.join(ROOT, "tools"), "-c", os.path.join(HERE, "test_ops.c"), "-o", test])
    why = why or compile_with([os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-w", "-I" + ROOT, "-x", "c++", "-include", os.path.join(HERE, "cuda_host.h"),
                               "-c", os.path.join(folder, "dreambooth_cuda.cu"), "-o", backend])
    why = why or compile_with([os.environ.get("CC", "cc"), test, backend, "-fopenmp", "-o", program, "-lm", "-lstdc++"])
    return why or run_test(program, "test_cuda", timeout)


def build_and_run(header, folder, timeout, kernels=True):
    """None if every test passes, else (test, why not); ("compiler", ...) if it does not compile. First without instruction
    sets, which compiles quickly; what survives that meets the tests of kernels with all of them, and a sanitizer."""
    if CUDA: return build_and_run_cuda(header, folder, timeout)
    with open(os.path.join(folder, "dreambooth.h"), "w") as f: f.write(header)
    sources = [t for t in TESTS if os.path.exists(os.path.join(HERE, t + ".c"))]
    for simd, test in [(0, t) for t in sources] + [(1, t) for t in sources[:2] if kernels]:
        program = os.path.join(folder, test)
        why = compile_with([os.environ.get("CC", "cc"), "-std=c99", "-O1", "-w", "-fopenmp", "-DDREAMBOOTH_IMPLEMENTATION", "-I" + folder, "-I" + ROOT,
                            "-I" + os.path.join(ROOT, "tools"), os.path.join(HERE, test + ".c"), "-o", program, "-lm",
                            "-fsanitize=address" if simd else "-DDB_NO_SIMD"])
        why = why or run_test(program, test, timeout)
        if why: return why
    return None


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--samples", type=int, default=50)
    p.add_argument("--only", default="", help="functions whose name matches this regular expression")
    p.add_argument("--list", action="store_true", help="only print the statements and how many changes each has")
    p.add_argument("--timeout", type=int, default=120)
    p.add_argument("--file", default=os.path.join(ROOT, "dreambooth.h"))
    a = p.parse_args()
    global CUDA
    CUDA = a.file.endswith(".cu")
    text = open(a.file).read()
    code = blank(text)
    found = [s for s in statements(text, code) if changes(text[s[1]:s[2]], s[3]) and re.search(a.only, s[0])]
    print(f"{len(found)} {'device' if CUDA else 'backward'} statements in {len({s[0] for s in found})} functions, "
          f"{sum(len(changes(text[s[1]:s[2]], s[3])) for s in found)} possible changes", flush=True)
    if a.list:
        for name, start, end, kind in found:
            print(f"{text.count(chr(10), 0, start) + 1}: {name}: {kind}: {' '.join(text[start:end].split())}  [{len(changes(text[start:end], kind))}]")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder goes
    rng = random.Random(a.seed)
    rng.shuffle(found)
    caught, survivors = 0, []
    with tempfile.TemporaryDirectory() as folder:
        why = build_and_run(text, folder, a.timeout, kernels=False)
        if why: return print("unchanged, the tests already fail: " + " ".join(why)) or 2
        for name, start, end, kind in found:
            if caught + len(survivors) == a.samples: break
            options = changes(text[start:end], kind)
            rng.shuffle(options)
            for what, new in options:
                why = build_and_run(text[:start] + new + text[end:], folder, a.timeout)
                if why and why[0] == "compiler": continue
                line = (f"{name} (line {text.count(chr(10), 0, start) + 1}), {what}: {' '.join(text[start:end].split())}"
                        f"  ->  {' '.join(new.split())}")
                if why:
                    caught += 1
                    print(f"caught {line}\n    by {why[0]}: {why[1][:150]}", flush=True)
                else:
                    survivors.append(line)
                    print(f"SURVIVED {line}", flush=True)
                break
    print(f"{len(survivors)} survivors" + (":" if survivors else ""))
    for line in survivors: print("  " + line)
    print(f"{caught} caught of {caught + len(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
