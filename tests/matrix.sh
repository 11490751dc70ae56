#!/bin/sh
# Compiles the header in every way that the manual promises, warnings as errors, and links two translation
# units of which one implements it; two at a time. Prints a line for each and a count.
dir=build/matrix n=0
rm -rf $dir; mkdir -p $dir
printf '#define DREAMBOOTH_IMPLEMENTATION\n#include "dreambooth.h"\nconst char *other(void);\nint main(void) { return other() == 0; }\n' > $dir/one.c
printf '#include "dreambooth.h"\nconst char *other(void);\nconst char *other(void) { return db_result_name(DB_OK); }\n' > $dir/two.c
echo 'int main(void) { return 0; }' > $dir/none.c
cp $dir/one.c $dir/one.cpp
cp $dir/two.c $dir/two.cpp
way() { # number, compiler and flags
    case $2 in *++*) x=cpp ;; *) x=c ;; esac
    if $2 -Wall -Wextra -Wpedantic -Wshadow -Werror -I. $dir/one.$x $dir/two.$x -o $dir/$1 -lm > $dir/$1.log 2>&1 && $dir/$1; then echo "ok $2"
    else echo "FAIL $2"; head -n 20 $dir/$1.log; fi > $dir/$1.out
}
for how in "gcc -std=c99 -fopenmp" "gcc -std=c99" "gcc -std=c11 -fopenmp" "gcc -std=c17 -O3" "gcc -std=c99 -DDB_NO_SIMD" "gcc -std=c99 -DDB_NO_POSIX" "clang -std=c99" "clang -std=c11 -O2" \
           "clang -std=c99 -fopenmp" "g++ -std=c++17 -fopenmp" "g++ -std=c++17" "clang++ -std=c++17" "clang++ -std=c++17 -fopenmp"; do
    command -v ${how%% *} > /dev/null || { echo "skipped $how: no such compiler"; continue; }
    case $how in *-fopenmp*) $how $dir/none.c -o $dir/none > /dev/null 2>&1 || { echo "skipped $how: no OpenMP"; continue; } ;; esac
    n=$((n + 1))
    way $n "$how" &
    [ $((n % 2)) = 1 ] || wait
done
wait
public=$(gcc -std=c99 -fopenmp -I. -c $dir/one.c -o $dir/one.o || echo "one.c does not compile"; [ ! -e $dir/one.o ] || nm -g --defined-only $dir/one.o | awk '{print $3}' | grep -v -e '^db_' -e '^main$' | tr '\n' ' ')
if [ -z "$public" ]; then echo "ok nm: every public symbol begins with db_"; else echo "FAIL nm: $public"; fi > $dir/nm.out
cat $dir/*.out
passed=$(cat $dir/*.out | grep -c "^ok ") failed=$(cat $dir/*.out | grep -c "^FAIL ")
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
