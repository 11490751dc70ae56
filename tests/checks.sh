# What the scripts that try the command-line tool share; sourced with $tool and $work set.
passed=0 failed=0
rm -rf "$work"; mkdir -p "$work"
ok() { echo "ok $1"; passed=$((passed + 1)); }
bad() { echo "FAIL $1: $2"; failed=$((failed + 1)); }

# refuses NAME PATTERN COMMAND...: fails with status 1, and says why on stderr
refuses() {
    name=$1 pattern=$2; shift 2
    "$@" > "$work/out" 2> "$work/err"; status=$?
    if [ $status != 1 ] || grep -q "Sanitizer\|runtime error" "$work/err"; then bad "$name" "status $status: $(tail -n 1 "$work/err")"
    elif grep -q -- "$pattern" "$work/err"; then ok "$name: $(grep -- "$pattern" "$work/err" | head -n 1)"
    else bad "$name" "no \"$pattern\" in: $(head -n 2 "$work/err" | tr '\n' ' ')"; fi
}
# says NAME PATTERN COMMAND...: succeeds, with a line on stdout or stderr
says() {
    name=$1 pattern=$2; shift 2
    if ! "$@" > "$work/out" 2>&1; then bad "$name" "$(tail -n 1 "$work/out")"
    elif grep -q -- "$pattern" "$work/out"; then ok "$name: $(grep -- "$pattern" "$work/out" | head -n 1)"
    else bad "$name" "no \"$pattern\" in: $(head -n 2 "$work/out" | tr '\n' ' ')"; fi
}
# a training as small as can be: tiny OUTPUT FLAGS...
tiny() {
    out=$1; shift
    $run $tool train --quiet --instance_data_dir $photos --instance_prompt "a zxk dog" --resolution 16 --train_batch_size 1 --max_train_steps 2 \
        --learning_rate 1e-4 --output_dir "$out" "$@"
}
run= # "exec" for a process of its own, which can be killed
photos=examples/world/subjects/dog1
sum() { if [ -s "$1" ]; then cksum < "$1" | tr ' ' -; else echo "no $1"; fi; }
