# dreambooth.h: `make` builds the tools, `make test` checks everything, `make help` lists the rest.

CC     = gcc
CXX    = g++
CLANG  = clang
PYTHON = python3
OPT    = -O2
OPENMP = -fopenmp
# functions and lines for backtraces; DEBUG=-g has the variables, too, and takes a third longer to compile
DEBUG  = -g1
# every warning that we hold ourselves to
WARN   = -Wall -Wextra -Wpedantic -Wshadow -Werror
CFLAGS = -std=c99 $(OPT) $(DEBUG) $(WARN) $(OPENMP) -I. -Itools
LDLIBS = -lm
B      = build

# make CUDA=1 B=build/cuda: with the GPU backend; --device chooses at run time
CUDA_HOME = /usr/local/cuda
GPU      = $(if $(CUDA),$(B)/dreambooth_cuda.o)
GPU_LIBS = $(if $(CUDA),-L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -ldl -lrt -lpthread)

HEADERS = dreambooth.h $(wildcard tools/*.h tests/*.h) $(B)/flags
TOOLS   = $(B)/dreambooth $(B)/world $(B)/pretrain $(B)/pretrain_metrics $(B)/gates $(B)/reproduce $(B)/make_spiece
EXAMPLES = $(patsubst examples/%.c,$(B)/%_c,$(wildcard examples/*.c)) $(patsubst examples/%.cpp,$(B)/%_cpp,$(wildcard examples/*.cpp)) $(B)/gpu_cu
TESTS   = $(patsubst tests/%.c,$(B)/%,$(wildcard tests/test_*.c)) $(if $(NO_CUDA),,$(B)/test_cuda $(B)/test_cuda_dreambooth)
FUZZ    = $(patsubst tests/%.c,$(B)/%,$(wildcard tests/fuzz_*.c))

all: $(TOOLS)

help:
	@echo "make              the tools, into build/"
	@echo "make demo         photos of a subject -> the subject in new places, into demo/ (emptied before); SUBJECT=robot1 for another,"
	@echo "                  SUBJECT=folder CLASS=dog for photos of yours"
	@echo "make test         every test: one line each, then 'N passed, N failed'"
	@echo "make sanitize     the same, without examples and GPU code, under the address and undefined-behaviour sanitizers"
	@echo "make matrix       the header with gcc and clang, as C99, C11 and C++17, with and without OpenMP"
	@echo "make neon         the operation and network tests for AArch64 under qemu-user"
	@echo "make fuzz         each file format's fuzz target for FUZZ_SECONDS=60"
	@echo "make mutate       breaks the gradients and the GPU kernels on purpose and counts what the tests notice"
	@echo "make golden       recomputes the golden values (of the packages in tests/golden/requirements.txt)"
	@echo "make check-diffusers   diffusers loads the shipped networks and what we write, and computes the same"
	@echo "make check-full   full-size Stable Diffusion 1.5, IF, CLIP, T5 with random weights against diffusers: up to 19 GB"
	@echo "make paper        the paper's experiments, into build/paper/report.html: 8 hours with AVX-512, in as many sittings as you like;"
	@echo "                  QUICK=1: a smoke test of ten minutes, without verdicts; BUDGET=60: stop after an hour; build/reproduce plan: what it does"
	@echo "make bench        speed against PyTorch, into build/bench.json"
	@echo "make cuda         build/cuda/dreambooth, with the GPU backend (nvcc); make test-cuda: its tests on the GPU"
	@echo "make retrain      trains the shipped cascade and its metric networks again, from nothing, into build/retrained: half a day"
	@echo "make verify       the shipped weights against examples/world/SHA256SUMS"
	@echo "make gates        the shipped base held to renders of the same 512 captions"
	@echo "make clean        removes build/, with what make paper and make retrain have put there"

# The header's implementation, compiled once for the programs that do not define DREAMBOOTH_IMPLEMENTATION themselves
$(B)/dreambooth.o: dreambooth.h $(B)/flags
	$(CC) $(CFLAGS) $(KERNEL_FLAGS) -DDREAMBOOTH_IMPLEMENTATION -x c -c $< -o $@

$(B)/dreambooth: tools/dreambooth.c $(B)/dreambooth.o $(GPU) $(HEADERS)
	$(CC) $(CFLAGS) $(GPU:%=-DDB_CUDA) $< $(B)/dreambooth.o $(GPU) -o $@ $(LDLIBS) $(GPU_LIBS)
$(addprefix $(B)/,bench pretrain pretrain_metrics reproduce gates): $(B)/%: tools/%.c $(GPU) $(HEADERS) | $(B)
	$(CC) $(CFLAGS) $(GPU:%=-DDB_CUDA) $< $(GPU) -o $@ $(LDLIBS) $(GPU_LIBS)
$(B)/%: tools/%.c $(HEADERS) | $(B)
	$(CC) $(CFLAGS) $< -o $@ $(LDLIBS)

# Tests of what the header keeps to itself have it whole: two of them every kernel, the others the plain ones
KERNELS = $(B)/test_ops $(B)/test_backend
INSIDE  = $(B)/test_dreambooth $(B)/test_files $(B)/test_metrics $(B)/test_tokenizers
$(KERNELS): $(B)/test_%: tests/test_%.c $(HEADERS) | $(B)
	$(CC) $(CFLAGS) -O1 $(KERNEL_FLAGS) $< -o $@ $(LDLIBS)
$(INSIDE): $(B)/test_%: tests/test_%.c $(HEADERS) | $(B)
	$(CC) $(CFLAGS) -O1 -DDB_NO_SIMD $< -o $@ $(LDLIBS)
$(B)/test_%: tests/test_%.c $(B)/dreambooth.o $(HEADERS)
	$(CC) $(CFLAGS) $< $(B)/dreambooth.o -o $@ $(LDLIBS)

# The GPU backend: for the processor under tests/cuda_host.h, where no GPU is needed; and for the GPU with `make cuda`.
# test_cuda and test_gpu: every operation; test_cuda_dreambooth and test_gpu_dreambooth: whole trainings
HOST_CUDA = -std=c++17 $(OPT) -O1 $(DEBUG) -Wall -Wextra -Wshadow -Werror -I. -x c++ -include tests/cuda_host.h
$(B)/cuda_host.o: dreambooth_cuda.cu dreambooth.h tests/cuda_host.h $(B)/flags
	$(CXX) $(HOST_CUDA) -c $< -o $@
ON_HOST = $(CC) $(CFLAGS) -O1 -DDB_NO_SIMD -DTEST_CUDA -DCUDA_ON_HOST $< $(B)/cuda_host.o -o $@ $(LDLIBS) -lstdc++
$(B)/test_cuda: tests/test_ops.c $(B)/cuda_host.o $(HEADERS)
	$(ON_HOST)
$(B)/test_cuda_dreambooth: tests/test_dreambooth.c $(B)/cuda_host.o $(HEADERS)
	$(ON_HOST)

NVCC      = nvcc
CUDA_ARCH = 75 80 86 90
NVFLAGS   = -std=c++17 -O3 -I. -Werror all-warnings -Xcompiler -Wall,-Wextra \
            $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
            $(foreach a,$(lastword $(CUDA_ARCH)),-gencode arch=compute_$(a),code=compute_$(a)) # for GPUs to come
$(B)/dreambooth_cuda.o: dreambooth_cuda.cu dreambooth.h $(B)/flags
	$(NVCC) $(NVFLAGS) -c $< -o $@
cuda:
	$(MAKE) CUDA=1 B=$(B)/cuda $(B)/cuda/dreambooth
# on a machine with a GPU: the tests on the device itself
test-cuda:
	$(MAKE) CUDA=1 B=$(B)/cuda $(B)/cuda/test_gpu $(B)/cuda/test_gpu_dreambooth && \
	sh tests/run.sh $(B)/cuda/test_gpu $(B)/cuda/test_gpu_dreambooth
ON_GPU = $(CC) $(CFLAGS) -O1 -DDB_NO_SIMD -DTEST_CUDA $< $(GPU) -o $@ $(LDLIBS) $(GPU_LIBS)
$(B)/test_gpu: tests/test_ops.c $(GPU) $(HEADERS)
	$(ON_GPU)
$(B)/test_gpu_dreambooth: tests/test_dreambooth.c $(GPU) $(HEADERS)
	$(ON_GPU)

retrain: $(B)/world $(B)/pretrain $(B)/pretrain_metrics $(B)/gates
	TOOLS=$(B) nice sh tools/retrain.sh $(B)/retrained
verify:
	cd examples/world && sha256sum -c --quiet SHA256SUMS && echo "the shipped weights are those of the record"
gates: $(B)/gates
	$(B)/gates run --out $(B)

# The paper's experiments, JOBS at a time (small trainings are faster side by side, with one thread each, than one after the
# other on all cores). A run that was stopped goes on where it was; the tests run it at its smallest, without kernels
JOBS = $(shell getconf _NPROCESSORS_ONLN || echo 1)
PAPER = --folder $(B)/paper$(if $(QUICK),-quick) $(if $(QUICK),--quick)
paper: $(B)/reproduce
	$(B)/reproduce run $(PAPER) $(BUDGET:%=--budget %) --jobs $(JOBS) && $(B)/reproduce report $(PAPER)
$(B)/test_reproduce_tool: tools/reproduce.c $(HEADERS) | $(B)
	$(CC) $(CFLAGS) -DDB_NO_SIMD $< -o $@ $(LDLIBS)

# Each example is a program of its own
$(B)/%_c: examples/%.c examples/photos.h $(HEADERS) | $(B)
	$(CC) $(CFLAGS) -O1 -pthread $< -o $@ $(LDLIBS)
$(B)/%_cpp: examples/%.cpp $(HEADERS) | $(B)
	$(CXX) -std=c++17 $(OPT) -O1 $(DEBUG) $(WARN) $(OPENMP) -I. $< -o $@ $(LDLIBS)

# those of the GPU on the processor as well: one includes the .cu, the other links its object
$(B)/gpu_cu: examples/gpu.cu dreambooth_cuda.cu $(B)/dreambooth.o tests/cuda_host.h
	$(CXX) $(HOST_CUDA) -c $< -o $@.o && $(CC) $@.o $(B)/dreambooth.o $(OPENMP) -o $@ $(LDLIBS) -lstdc++
$(B)/gpu_object_c: examples/gpu_object.c $(B)/cuda_host.o $(HEADERS)
	$(CC) $(CFLAGS) -O1 -DDB_CUDA $< $(B)/cuda_host.o -o $@ $(LDLIBS) -lstdc++

$(B):
	mkdir -p $(B)

# What was built by another compiler, or with other flags, is built anew
FLAGS = $(CC) $(CFLAGS) $(KERNEL_FLAGS), $(CXX) $(HOST_CUDA), $(NVCC) $(NVFLAGS)
$(B)/flags: FORCE | $(B)
	@echo '$(FLAGS)' | cmp -s - $@ || echo '$(FLAGS)' > $@
FORCE:

# The main job, into demo/: SUBJECT is one of the world's 36, or a folder of photos with CLASS=noun.
SUBJECT = dog1
CLASS   = $(shell echo $(notdir $(SUBJECT)) | tr -d 0-9)
demo: $(B)/dreambooth $(if $(wildcard $(SUBJECT)/. examples/world/subjects/$(SUBJECT)/.),,$(B)/world)
	@for d in "$(SUBJECT)" "examples/world/subjects/$(SUBJECT)" "$(B)/subjects/$(SUBJECT)"; do \
	    [ -d "$$d" ] && break; [ "$$d" != "$(B)/subjects/$(SUBJECT)" ] || $(B)/world subjects --name "$(SUBJECT)" --out $(B)/subjects || exit 1; \
	done; case "$$(cd "$$d" && pwd -P)/" in "$(CURDIR)/demo/"*) echo "demo/ is where the results go: put the photos elsewhere"; exit 1;; esac; \
	rm -rf demo && $(B)/dreambooth demo --instance_data_dir "$$d" --class_noun "$(CLASS)" --output_dir demo

# NO_TOOLS=1: without what runs whole programs
SCRIPTS = $(if $(NO_TOOLS),,"sh tests/tool.sh $(B)/dreambooth $(B)/tool_test" "sh tests/tool_sd.sh $(B)/dreambooth $(B)/tool_sd_test $(B)/test_sd" \
    "sh tests/paper.sh $(B)/test_reproduce_tool $(B)/paper_test")
test: $(TESTS) $(EXAMPLES) $(if $(NO_TOOLS),,$(B)/dreambooth $(B)/test_reproduce_tool)
	@sh tests/run.sh $(TESTS) $(SCRIPTS) $(if $(EXAMPLES),"sh tests/examples.sh $(B) $(wildcard examples/*.c examples/*.cpp examples/*.cu)")

# Under the address and undefined-behaviour sanitizers, in a build folder of their own, without the examples. A compiler
# takes many minutes for the kernels of all instruction sets then: they are checked for addresses alone.
sanitize:
	$(MAKE) test B=build/sanitize NO_CUDA=1 EXAMPLES= KERNEL_FLAGS=-fno-sanitize=undefined \
	    OPT="-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"

matrix:
	@sh tests/matrix.sh

# AArch64: cross compiler and qemu-user; the processor's own set is NEON there
neon: | $(B)
	aarch64-linux-gnu-gcc $(CFLAGS) -static tests/test_ops.c -o $(B)/test_ops_neon $(LDLIBS)
	aarch64-linux-gnu-gcc $(CFLAGS) -static -DDREAMBOOTH_IMPLEMENTATION tests/test_networks.c -o $(B)/test_networks_neon $(LDLIBS)
	@sh tests/run.sh "qemu-aarch64 $(B)/test_ops_neon" "qemu-aarch64 $(B)/test_networks_neon"

FUZZ_SECONDS = 60
FUZZ_OPT = -O1
$(B)/fuzz_checkpoint: FUZZ_OPT = -O0 # of nearly all of the header -O1 takes five minutes, and doubles the runs in one
$(B)/fuzz_%: tests/fuzz_%.c $(HEADERS) | $(B)
	$(CLANG) -std=c99 $(FUZZ_OPT) $(DEBUG) -I. -Itools -DDB_NO_SIMD -fsanitize=fuzzer,address,undefined $< -o $@ $(LDLIBS)
fuzz: $(patsubst $(B)/%,%,$(FUZZ))
fuzz_%: $(B)/fuzz_% FORCE
	@sh tests/fuzz_seeds.sh $* $(B)/seeds_$*
	@$< $(B)/seeds_$* -max_total_time=$(FUZZ_SECONDS) -print_final_stats=0 -verbosity=0 && echo "ok $@: $(FUZZ_SECONDS) s"

mutate:
	$(PYTHON) tests/mutate.py --samples 50 --seed 1
	$(PYTHON) tests/mutate.py --samples 30 --seed 1 --file dreambooth_cuda.cu

golden:
	$(PYTHON) tests/golden/make_networks.py # whose files make_lora.py reads
	for f in tests/golden/make_*.py; do [ $$f = tests/golden/make_networks.py ] || $(PYTHON) $$f || exit 1; done

check-diffusers: $(B)/dreambooth $(B)/test_sd $(B)/test_lora
	$(PYTHON) tests/check_diffusers.py
	$(PYTHON) tests/check_sd.py

check-full: $(B)/dreambooth
	$(PYTHON) tests/check_full.py

bench: $(B)/bench
	$(PYTHON) tools/bench.py

clean:
	rm -rf $(B)

.PHONY: all help cuda test-cuda demo paper test sanitize matrix neon fuzz mutate golden check-diffusers check-full bench retrain verify gates clean
.SECONDARY:
