#!/bin/sh
# The runner of the experiments at its smallest scale: 2 steps, 16 pixels, no metric networks. What is checked is that
# it stops, goes on, shares runs, repeats to the digit, and reports; not what it measures.
#
#     sh tests/paper.sh build/test_reproduce_tool FOLDER
tool=$1 work=$2
. tests/checks.sh
none="--dino none --clip none --lpips none --classifier none"
small="--micro --folder $work/p $none"
lines() { grep -c "$1" "$work/p/results.jsonl" 2> /dev/null; }

# ---- the plan
says "the plan" "in all .* hours" $tool plan
says "the plan's cells" "prior/with/candle1/2 " $tool plan --experiment prior --cells
refuses "an unknown experiment" "did you mean photos" $tool run $small --experiment fotos
refuses "an unknown cell" "no cell" $tool run $small --only noun/left/dog2/0

# ---- run, stop, go on
$tool run $small --experiment noun > "$work/out" 2>&1 & pid=$!
waited=0
while [ $waited -lt 1200 ] && ! grep -q "^ *1/3" "$work/out"; do sleep 0.1; waited=$((waited + 1)); done
kill -TERM $pid; wait $pid; status=$?
[ $status = 0 ] && grep -q "of 3 cells are done; the same command goes on" "$work/out" && [ "$(lines noun/)" -lt 3 ] &&
    ok "SIGTERM: $(tail -n 1 "$work/out")" || bad "SIGTERM" "status $status, $(tail -n 1 "$work/out")"
printf '{"cell": "noun/none/dog2/0", "key' >> "$work/p/results.jsonl" # a line that a killed run left
says "goes on, past a broken line" "all 3 cells are done" $tool run $small --experiment noun
[ "$(lines '"cell": "noun/[a-z]*/dog2/0", "key": ')" = 3 ] && ok "three cells, each once" || bad "three cells" "$(lines '"key": ') records"
says "nothing left to do" "3 cells, 3 of them done" $tool run $small --experiment noun
mkdir "$work/zeros"; { printf '\0\0\n'; cat "$work/p/results.jsonl"; } > "$work/zeros/results.jsonl" # as a machine that stopped leaves them
says "records behind zeros" "3 cells, 3 of them done" $tool run --micro --folder "$work/zeros" $none --experiment noun
$tool run $small --experiment class_guidance > "$work/out" 2>&1
grep '"cell": "class_guidance/1/' "$work/p/results.jsonl" | grep -q '"same_as": "noun/right/dog2/0"' &&
    ok "an equal run is shared" || bad "an equal run is shared" "$(tail -n 1 "$work/out")"
# two processes: nothing is done twice, and the values are those of one
$tool run --micro --folder "$work/two" $none --experiment noun --jobs 2 > "$work/out" 2>&1
values() { sed -n 's/.*"cell": "\(noun[^"]*\)".*"values": /\1 /p' "$1/results.jsonl" | sort; }
grep -q "all 3 cells are done" "$work/out" && [ "$(grep -c '"cell"' "$work/two/results.jsonl")" = 3 ] && [ "$(values "$work/two")" = "$(values "$work/p")" ] &&
    ok "two processes: every cell once, the same values" || bad "two processes" "$(tail -n 1 "$work/out")"
says "the budget" "stopped: the next cell" $tool run $small --experiment photos --budget 0.0001
says "a cell again: to the digit" "to the digit those of the record" $tool run $small --only noun/wrong/dog2/0 --threads 1

# ---- the report
says "the report" "report.html" $tool report --micro --folder "$work/p"
before=$(sum "$work/p/report.html")
$tool report --micro --folder "$work/p" > /dev/null 2>&1
[ "$before" = "$(sum "$work/p/report.html")" ] && ok "the report: the same bytes again" || bad "the report" "other bytes"
grep -A1 "<code>class_guidance/1/dog2/0</code>" "$work/p/report.html" | grep -q "data:image/png" && ok "a shared run's pictures" || bad "a shared run's pictures" "they are not in the report"
grep -q "no inference is drawn" "$work/p/report.html" && ! grep -q 'class="agrees"\|"verdict"\|p, Holm' "$work/p/report.html" "$work/p/results.json" &&
    ok "a smoke test has no verdicts" || bad "a smoke test" "it has verdicts"
grep -q 'src="http\|href="http\|url(http' "$work/p/report.html" && bad "one file" "it names others" || ok "the report is one file"
refuses "no records" "build/reproduce run comes first" $tool report --micro --folder "$work/nothing"

# ---- verdicts, of records that were made up: PRES as the paper has it, DIV against it, CLIP-T alike, diversity scattered; trainings
# without prior preservation diverged with seed 0, where DIV would have been for the paper: pairs are of one seed; 64 pictures
# of the class are with seed 0 alone
mkdir -p "$work/v/cells"
$tool plan --experiment prior --cells | awk '$1 ~ "^prior/" { split($1, part, "/"); i = ++seen[part[2]]; without = part[2] == "without"
    name = $1; $1 = ""; sub(/^ */, "")
    printf "{\"cell\": \"%s\", \"key\": \"0\", \"networks\": \"0\", \"settings\": \"%s\", \"seconds\": 1, \"values\": {", name, $0
    if (part[4] == 0 && without) { print "\"diverged\": 1}}"; next }
    printf "\"pres\": %.6f, \"div\": %.6f, ", .5 + .01 * i + .2 * without, .3 + .001 * i + .1 * without + (part[4] == 0)
    printf "\"clip_t\": %.6f", .3 + .0001 * (i % 7) + .002 * without
    if (part[4] == 0) printf ", \"class_diversity_64_original\": 0.5, \"class_diversity_64\": %.6f", .5 + (i % 2 ? .3 : -.3) + .001 * i
    print "}}" }' > "$work/v/results.jsonl"
says "a report with verdicts" "report.html" $tool report --folder "$work/v"
grep -q "15 of these trainings diverged" "$work/v/report.html" && ok "diverged trainings are counted" || bad "diverged trainings" "not counted"
verdict() {
    grep "\"id\": \"$1\"" "$work/v/results.json" | grep -q "\"n\": $2, .*\"verdict\": \"$3\"" && ok "$1: $3" ||
        bad "$1" "$(grep "\"id\": \"$1\"" "$work/v/results.json")"
}
verdict H1 15 agrees; verdict H2 15 opposite; verdict H3 15 agrees; verdict H4 15 inconclusive; verdict H5 0 incomplete

# ---- the recorded run
mkdir -p "$work/record"; cp examples/world/paper/results.jsonl "$work/record"
says "the recorded run is of these weights and settings, and complete" "all 651 cells are done" \
    $tool run --folder "$work/record" --budget .001

# ---- the protocol, on a subject's folder
mkdir -p "$work/subjects"; cp -r examples/world/subjects/dog1 "$work/subjects/dog1"
cat > "$work/prompts.txt" << 'END'
Classes
subject_name,class
dog1,dog
Object Prompts
'a {0} {1} in the jungle'.format(unique_token, class_token),
Live Subject Prompts
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
END
says "the protocol" "normalised fidelity" $tool protocol --subjects "$work/subjects" --prompts "$work/prompts.txt" --folder "$work/q" --micro $none \
    --settings "lr=1e-4 steps=1 classes=1 batch=1" --num_images 1 --class_pictures 1 --num_inference_steps 1 --class_steps 1
grep -q 'a zxk dog in the snow|a red zxk dog' "$work/q/results.jsonl" && ok "the protocol's prompts" || bad "the protocol's prompts" "$(head -c 300 "$work/q/results.jsonl")"
refuses "a protocol without a learning rate" "must have lr= and steps=" $tool protocol --subjects "$work/subjects" --prompts "$work/prompts.txt" --settings steps=1
for wrong in "train=lora:go together" "rank=4:go together" "train=embedding:the protocol has" "noun=wrong:the experiments'" "lr:no NAME=VALUE" "schedule=linear:takes constant or cosine" "batch=1O:is no number"; do
    refuses "a protocol with ${wrong%:*}" "${wrong#*:}" $tool protocol --subjects "$work/subjects" --prompts "$work/prompts.txt" --settings "lr=1 steps=1 ${wrong%:*}"
done
refuses "a protocol without pictures" "needs a picture of each prompt" $tool protocol --subjects "$work/subjects" --prompts "$work/prompts.txt" --settings "lr=1 steps=1" --num_images 0
refuses "prompts that are none" "names no subjects\|has no prompts" $tool protocol --subjects "$work/subjects" --prompts README.md --folder "$work/q" $none --settings "lr=1 steps=1"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
