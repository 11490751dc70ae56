#!/bin/sh
# Runs every example (built into FOLDER) and compares what it prints with the "Prints" of its first comment.
#
#     sh tests/examples.sh FOLDER examples/*.c examples/*.cpp
folder=$1; shift
root=$(pwd) passed=0 failed=0
mkdir -p "$folder/run"
ln -sfn "$root/examples" "$folder/run/examples"
for source in "$@"; do
    name=$(basename "$source" | tr . _)
    sed -n '/^   Prints$/,/\*\//p' "$source" | sed '1d; s/ *\*\/$//; s/^       //; /^$/d' > "$folder/run/$name.expected"
    (cd "$folder/run" && "$root/$folder/$name" > "$name.out" 2> "$name.err"); status=$?
    if [ $status = 0 ] && [ -s "$folder/run/$name.expected" ] && diff "$folder/run/$name.expected" "$folder/run/$name.out" > "$folder/run/$name.diff"; then
        echo "ok example $source"; passed=$((passed + 1))
    else
        echo "FAIL example $source: status $status; $(head -n 3 "$folder/run/$name.err" "$folder/run/$name.diff" | tr '\n' ' ')"; failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
