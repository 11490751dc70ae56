#!/bin/sh
# Runs each test program and adds up the last lines that they print. A program that dies, or prints no
# such line, counts as a failure.
passed=0 failed=0
for t in "$@"; do
    echo "== $t"
    out=$($t 2>&1); status=$?
    echo "$out"
    last=$(echo "$out" | tail -n 1)
    p=$(echo "$last" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1/p')
    f=$(echo "$last" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\2/p')
    if [ -z "$p" ]; then echo "FAIL $t: ended with status $status and no count"; f=1 p=0; fi
    if [ "$status" != 0 ] && [ "$f" = 0 ]; then echo "FAIL $t: status $status"; f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
