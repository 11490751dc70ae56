#!/bin/sh
# Compiles the header in every way that the manual promises, warnings as errors, and links two translation
# units of which one implements it. Prints a line for each and a count.
dir=build/matrix passed=0 failed=0
mkdir -p $dir
printf '#define DREAMBOOTH_IMPLEMENTATION\n#include "dreambooth.h"\nconst char *other(void);\nint main(void) { return other() == 0; }\n' > $dir/one.c
printf '#include "dreambooth.h"\nconst char *other(void);\nconst char *other(void) { return db_result_name(DB_OK); }\n' > $dir/two.c
cp $dir/one.c $dir/one.cpp
cp $dir/two.c $dir/two.cpp
for how in "gcc -std=c99 -fopenmp" "gcc -std=c99" "gcc -std=c11 -fopenmp" "gcc -std=c17 -O3" "gcc -std=c99 -DDB_NO_SIMD" "clang -std=c99" "clang -std=c11 -O2" \
           "g++ -std=c++17 -fopenmp" "g++ -std=c++17" "clang++ -std=c++17"; do
    command -v ${how%% *} > /dev/null || { echo "skipped $how: no such compiler"; continue; }
    case $how in *++*) x=cpp ;; *) x=c ;; esac
    if $how -Wall -Wextra -Wpedantic -Wshadow -Werror -I. $dir/one.$x $dir/two.$x -o $dir/a -lm > $dir/log 2>&1 && $dir/a; then
        echo "ok $how"; passed=$((passed + 1))
    else
        echo "FAIL $how"; head -n 20 $dir/log; failed=$((failed + 1))
    fi
done
public=$(gcc -std=c99 -fopenmp -I. -c $dir/one.c -o $dir/one.o && nm -g --defined-only $dir/one.o | awk '{print $3}' | grep -v -e '^db_' -e '^main$' | tr '\n' ' ')
if [ -z "$public" ]; then echo "ok nm: every public symbol begins with db_"; passed=$((passed + 1)); else echo "FAIL nm: $public"; failed=$((failed + 1)); fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
