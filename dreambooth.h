/* dreambooth.h - DreamBooth in one header: teach a diffusion model a subject from a few photos

   Do this

       #define DREAMBOOTH_IMPLEMENTATION
       #include "dreambooth.h"

   in one C or C++ file, before any other include, and only #include it elsewhere. Link with -lm,
   and compile with -fopenmp to use more than one processor core. The file keeps its name: it
   includes itself, once for each instruction set. A complete program, which draws a picture into
   memory:

       int main(void)
       {
           static float pixels[64 * 64 * 3];            // [H][W][3] in [-1,1]
           const char *prompt = "a red dog on the beach";
           db_sample_config config = db_sample_config_default();
           db_ctx *ctx = NULL;
           db_pipeline *model = NULL;
           if (db_create(&ctx, NULL) != DB_OK) return 1;
           if (db_pipeline_load(ctx, "examples/world/base", &model) == DB_OK)
               db_generate(model, &prompt, 1, NULL, &config, 64, 64, pixels);
           puts(db_status(ctx) == DB_OK ? "it is in pixels" : db_last_error(ctx));
           db_pipeline_free(model), db_destroy(ctx);
       }

   examples/dreambooth.c teaches a model a subject in a page.

   Contents (search for the tags)

       [DB-01]  platform, allocation, errors, log, random numbers, threads
       [DB-02]  tensors, the tape, the backend table
       [DB-03]  operations: a kernels (at the end of the file), b instruction sets, c drivers
       [DB-04]  parameters, AdamW (also with 8 bits), EMA, learning-rate schedules
       [DB-05]  JSON, safetensors
       [DB-06]  tokenizers: SentencePiece unigram, CLIP byte-level BPE
       [DB-07]  networks: layers by name, weights in files, LoRA; the text encoders T5, CLIP
       [DB-08]  the U-Nets of DeepFloyd IF and Stable Diffusion, the VAE
       [DB-09]  noise schedule and samplers: DDPM, DDIM, DPM-Solver++; guidance, thresholding
       [DB-10]  super-resolution: noise conditioning augmentation
       [DB-11]  pipelines: load, draw, upscale, save
       [DB-12]  DreamBooth: the loss, the training step, checkpoints
       [DB-13]  metrics: DINO, CLIP-I, CLIP-T, LPIPS, PRES, DIV

   From the paper (Ruiz et al., 2022; Saharia et al., 2022 for the cascade) to the code

       x                   a clean picture [H,W,3] in [-1,1]        db_image, db_resize
       c = Gamma(P)        the prompt's encoding [T,D]              db_encode, db_text_forward
       eps                 standard normal noise                    db_random_normal
       alpha_t, sigma_t    the schedule, alpha^2 + sigma^2 = 1      db_schedule_coefficients
       x_t = alpha_t x + sigma_t eps                                db_mix
       x_hat(x_t, c)       the network                              db_unet_forward
       w_t |x_hat - x|^2   the loss of every sample                 db__denoising_loss
       w_t                 of plain errors of eps, x, v: SNR, 1,
                           SNR + 1, SNR being alpha^2 / sigma^2;
                           or min-SNR's (Hang et al., 2023), or
                           SNR whatever the network predicts        snr_gamma, db__loss_weight
       lambda              weight of prior preservation             prior_loss_weight
       eq. 2               both terms                               db__draw_batch, its weights
       x_pr                class images, ancestral sampler          db_generate, db_class_image_seed
       augmentation level  noise on the small picture     db_noise_level, db_condition_low_res

   Memory. What db_x_create, _load or _open gives is freed with db_x_free, _destroy or _close;
   freeing NULL does nothing. Inputs are copied unless it says otherwise; outputs go into the
   caller's memory. All allocations pass through db_config.allocate, or malloc; what another
   backend computes with is that backend's. A tape's memory is planned before its first run.
   Checkpoints are mapped into memory where the system can.

   Errors. Functions return a db_result. The first failure stays in the context, with a sentence
   that names file, tensor and both shapes; until db_clear_error everything else does nothing and
   returns it, so a sequence of calls needs one check at its end. What makes a handle (_create,
   _load, _open) needs its own: on failure the handle is NULL, which only frees, closes and the
   writer of files take.
   Nothing exits, aborts or prints.

   Threads. A context belongs to one thread at a time; contexts share nothing. Inside, OpenMP takes
   db_config.threads threads; no result depends on their number. On a GPU under Windows or WSL,
   where the processor may not touch managed memory while the GPU computes, the program lets its
   contexts take turns; and while a tape's second run is recorded as a graph, no other thread of the
   program may use CUDA's legacy default stream.

   Layout. Pictures and feature maps are [B,H,W,C], texts [B,T,C], the last index the nearest in
   memory. Files have PyTorch's order; db_param_get and db_param_set translate.

   Macros, to define before the include: DB_NO_SIMD leaves out all instruction sets but the
   scalar one (a shorter compile), DB_NO_POSIX mmap, mkdir, fsync and, since Linux has to be asked
   for it, AMX. In the environment, DB_ISA=scalar, avx2, avx512, avx512bf16, amx or neon forces an
   instruction set.

   Files. Diffusers' directories: config.json, *.safetensors (f32, f16, bf16, in shards or one),
   scheduler_config.json, spiece.model, vocab.json and merges.txt, tokenizer.json; single LDM files
   of Stable Diffusion 1.x. Everything is written under another name first, synced, and renamed
   (Windows replaces nothing by renaming: there the old file is removed just before). */
#ifndef DREAMBOOTH_H
#define DREAMBOOTH_H

#if defined(DREAMBOOTH_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* strict C99 hides POSIX and Linux names */
#endif
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- results ---- */
#define DB_RESULTS(X)                                                                              \
    X(DB_OK, "ok")                                                                                 \
    X(DB_ERROR_ARGUMENT, "an argument is out of range")                                            \
    X(DB_ERROR_MEMORY, "out of memory")                                                            \
    X(DB_ERROR_FILE, "a file could not be opened, read or written")                                \
    X(DB_ERROR_FORMAT, "a file is not what its format asks for")                                   \
    X(DB_ERROR_SHAPE, "shapes do not fit together")                                                \
    X(DB_ERROR_MISSING, "something needed is missing")                                             \
    X(DB_ERROR_UNSUPPORTED, "not supported")                                                       \
    X(DB_ERROR_NUMERIC, "a value became infinite or not a number")                                 \
    X(DB_ERROR_CANCELLED, "cancelled by the caller")                                               \
    X(DB_ERROR_DEVICE, "the GPU failed")

typedef enum db_result {
#define DB__ENUM(name, text) name,
    DB_RESULTS(DB__ENUM)
#undef DB__ENUM
} db_result;

/* ---- data types: X(name, bytes). bf16 and f32 are computed in; the others occur in files ----- */
#define DB_DTYPES(X)                                                                               \
    X(F64, 8) X(F32, 4) X(F16, 2) X(BF16, 2) X(I64, 8) X(I32, 4) X(I16, 2) X(I8, 1) X(U8, 1)       \
    X(BOOL, 1)

typedef enum db_dtype {
#define DB__ENUM(name, bytes) DB_##name,
    DB_DTYPES(DB__ENUM)
#undef DB__ENUM
    DB_DTYPE_COUNT
} db_dtype;

const char *db_dtype_name(db_dtype dtype); /* "F32", ... or "?" */
size_t db_dtype_size(db_dtype dtype);      /* bytes of one element, or 0 */

/* ---- [DB-01] the context -----------------------------------------------------------------------

   One context owns the settings, the error state and the memory accounting of everything that is
   made with it. Use one per thread of yours; contexts share nothing. */

typedef enum db_log_level { DB_LOG_INFO, DB_LOG_WARNING } db_log_level;
typedef struct db_backend db_backend;
typedef struct db_ctx db_ctx;

typedef struct db_config {
    void *(*allocate)(void *user, size_t bytes); /* db_config_default: malloc, free             */
    void (*release)(void *user, void *memory);
    void (*log)(void *user, db_log_level level, const char *line); /* default: none             */
    int (*progress)(void *user, const char *what, size_t done, size_t total); /* default: none;
                                    after each step, "sampling" (of all groups of pictures) or
                                    "training", and each picture of "encoding" (training latents);
                                    not 0 cancels, with DB_ERROR_CANCELLED: pictures are then
                                    undefined, the training step is done */
    void *user;                /* handed to the four                                             */
    int threads;               /* 0: as many as OpenMP would take                                */
    db_dtype compute;          /* of activations: DB_F32, or DB_BF16 with f32 sums and weights   */
    const char *isa;           /* "scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"; NULL:
                                  $DB_ISA, else the best one                                     */
    const db_backend *backend; /* NULL: the CPU                                                  */
} db_config;

/* What every configuration begins with: one that is all zeros is refused. */
db_config db_config_default(void);

/* Makes a context; `config` may be NULL. On failure *out is NULL: out of memory, an allocator
   without its partner, another `compute` than the two, an instruction set that is not there. Free
   with db_destroy, last of all. */
db_result db_create(db_ctx **out, const db_config *config);
void db_destroy(db_ctx *ctx);

/* The first failure since the context was made or cleared, and the sentence that explains it.
   While there is one, operations on the context do nothing and return it. */
db_result db_status(const db_ctx *ctx);
const char *db_last_error(const db_ctx *ctx);
void db_clear_error(db_ctx *ctx);
const char *db_result_name(db_result r);

const char *db_isa(const db_ctx *ctx); /* the instruction set in use                             */
const char *db_isa_name(size_t index); /* those that this machine has, best first; then NULL     */
size_t db_peak_bytes(const db_ctx *ctx); /* the most memory the context has held at once */

/* ---- [DB-01] random numbers ---------------------------------------------------------------------

   Number `index` of a stream is a function of (seed, purpose, step, index) alone: nothing to save,
   nothing that depends on the order of the calls. `purpose` is what a stream is for: two of one
   seed and step are independent if theirs differ. The library's own are below 300, in training a
   super-resolver below 300 and the batch. */

typedef struct db_rng {
    uint64_t seed;
    uint32_t purpose, step;
} db_rng;

uint32_t db_random_bits(const db_rng *rng, uint64_t index);
float db_random_uniform(const db_rng *rng, uint64_t index);              /* [0, 1)            */
uint32_t db_random_below(const db_rng *rng, uint64_t index, uint32_t n); /* 0 ... n-1         */
void db_random_normal(const db_rng *rng, size_t n, float *out);          /* numbers 0 ... n-1 */

/* ---- [DB-04] parameters -------------------------------------------------------------------------

   A model's parameters: one table of state-dict names, shapes and memory that loading, saving, the
   optimiser, EMA and gradient checks all walk. The table is filled by recording the model's forward
   pass once: each layer declares what it needs. Weights are f32. Tables belong to the networks of
   this header; weights of a network of your own are inputs of a tape (db_require_grad). */

typedef struct db_param {
    char *name;       /* state-dict name                                                          */
    int n_dims;
    size_t dim[4]; /* PyTorch's shape. Memory has [OC,IC,k,k] as [k][OC][k][IC]                 */
    size_t count;
    float *data, *grad; /* inside the table's buffers; grad: NULL until db_params_require_grad */
    int frozen;       /* no gradient, no update                                                   */
} db_param;

enum { DB_GRAD_ROOM = 1024 }; /* floats behind the gradients, for the partial sums of their norm */

typedef struct db_param_table {
    db_ctx *ctx;
    db_param *item;
    size_t n, capacity;
    size_t count;     /* floats in each buffer, padding between parameters included               */
    float *data, *grad;
    struct db_lora *lora; /* owned: put beside its layers (db_unet_add_lora ...), or NULL         */
    struct db__source *source; /* private: the file that still holds the weights, or NULL         */
    size_t lora_changes;       /* private: how often one was put there or taken away              */
} db_param_table;

/* A network that was loaded has its weights read when they are first needed: by a tape that is
   recorded, an optimizer, a pipeline that is saved. Before a program uses `data` by itself (for an
   average, a file) it calls this. */
db_result db_params_fill(db_param_table *p);

db_param *db_params_find(const db_param_table *p, const char *name); /* or NULL */

/* Makes room for gradients, until the network is freed: tapes recorded afterwards compute them. */
db_result db_params_require_grad(db_param_table *p);

/* A parameter (from, to: item->data), or its gradient (item->grad), in PyTorch's order; out and in
   hold item->count floats. */
void db_param_get(const db_param *item, const float *from, float *out);
void db_param_set(const db_param *item, float *to, const float *in);

/* Low-rank adaptation (Hu et al., 2021): beside a linear layer's weight W, which stays as it is,
   two narrow factors, y = W x + alpha / rank B (A x). They are a table of their own:
   NAME.lora_A.weight [rank,IC], NAME.lora_B.weight [OC,rank], for each layer NAME. Tapes recorded
   afterwards contain them; training takes this table in place of the network's, which then needs
   no gradients. */
typedef struct db_lora {
    db_param_table params;
    size_t rank;
    float alpha; /* may be changed, for the tapes recorded afterwards: diffusers' scale times it */
} db_lora;

/* Multiplies the factors into the weights, W += alpha / rank B A, and frees them; remove frees them
   alone. Tapes recorded before are void, and what trains the factors takes no more steps. `network`
   is that of one network: &p->unet->params, &p->text_encoder->params. Without a LoRA they do
   nothing. */
db_result db_lora_merge(db_param_table *network);
void db_lora_remove(db_param_table *network);

/* ---- [DB-02] tensors and the tape ---------------------------------------------------------------

   A db_tensor is a handle: a value on a tape and the shape in which it is looked at. Handles are
   plain values, nothing to free. A failed operation returns id -1 and sets the error. */

typedef struct db_tape db_tape;

typedef struct db_tensor {
    int id;
    int n_dims;
    size_t dim[4];
} db_tensor;

extern const db_tensor db_none; /* passed where an operand may be "none" */

typedef struct db_memory_plan {
    size_t arena_bytes; /* activations, their gradients, inputs; between them the kernels' own    */
    size_t n_operations;
    double flops; /* multiplications and additions of convolutions, products, attention in a run  */
} db_memory_plan;

db_result db_tape_create(db_ctx *ctx, db_tape **out);
void db_tape_destroy(db_tape *t);

/* An input whose contents db_upload sets; stays until the tape is destroyed. */
db_tensor db_input(db_tape *t, db_dtype dtype, int n_dims, const size_t *dim);
/* Before db_plan: x can be downloaded after a run. Inputs and their gradients always can; other
   gradients share their room, and cannot even with db_keep. */
void db_keep(db_tape *t, db_tensor x);
/* Of an input, before anything reads it; parameters have it by themselves. */
void db_require_grad(db_tape *t, db_tensor x);

/* Once on a tape: records the gradient of the scalar `loss` with respect to everything that
   requires one. Gradients of parameters add up from run to run, until db_zero_grad; db_grad reads
   those of inputs (id -1: none has arrived). */
db_result db_backward(db_tape *t, db_tensor loss);
db_tensor db_grad(const db_tape *t, db_tensor x);

/* What is recorded between the two is computed again in the backward pass rather than kept. */
void db_checkpoint_begin(db_tape *t);
void db_checkpoint_end(db_tape *t);

/* Fixes the memory plan (nothing can be recorded afterwards); *plan (or NULL) tells it. The first
   db_upload, db_run or db_download does the same. */
db_result db_plan(db_tape *t, db_memory_plan *plan);
db_result db_upload(db_tape *t, db_tensor x, const void *data); /* x's own data type            */
db_result db_run(db_tape *t, uint64_t seed, uint32_t step);     /* seed, step: of its noise     */
db_result db_download(db_tape *t, db_tensor x, float *out);     /* f32 or bf16, as floats       */

size_t db_count(db_tensor x);
db_tensor db_reshape(db_tape *t, db_tensor x, int n_dims, const size_t *dim);

/* ---- [DB-03] operations, with gradients unless it says otherwise ----------------------------- */

typedef enum db_activation {
    DB_ACT_NONE, DB_ACT_SILU, DB_ACT_GELU, DB_ACT_GELU_TANH, DB_ACT_QUICK_GELU, DB_ACT_RELU
} db_activation;

/* x [B,H,W,IC], w [OC,IC,k,k] (in memory, as its gradient, [k][OC][k][IC]: see db_param_set), bias
   [OC] or none, residual like y or none -> y [B,OH,OW,OC], where
   OH = (H + pad_begin + pad_end - k) / stride + 1, pad_begin being above and to the left */
db_tensor db_conv2d(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor residual,
                    size_t stride, size_t pad_begin, size_t pad_end);
/* x [...,IC], w [OC,IC], bias [OC] or none, residual like y or none -> y [...,OC] */
db_tensor db_linear(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor residual);
/* x [B,...,C]; w, bias [C]; scale_shift [B,2C] or none -> act(norm(x) (1 + scale) + shift) */
db_tensor db_group_norm(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor scale_shift,
                        size_t groups, float eps, db_activation act);
/* x [...,C]; w, bias [C]: over the last dimension */
db_tensor db_layer_norm(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, float eps);
db_tensor db_rms_norm(db_tape *t, db_tensor x, db_tensor w, float eps);
db_tensor db_activate(db_tape *t, db_tensor x, db_activation act);
/* x [...,2C], values and gates -> [...,C], values act(gates): with GELU, GEGLU (Shazeer, 2020) */
db_tensor db_gate(db_tape *t, db_tensor x, db_activation act);
db_tensor db_multiply(db_tape *t, db_tensor a, db_tensor b); /* each by each, of one size */
/* alpha x + beta z, z of x's size or none */
db_tensor db_weighted_sum(db_tape *t, float alpha, db_tensor x, float beta, db_tensor z);
db_tensor db_concat(db_tape *t, db_tensor a, db_tensor b, int axis); /* other axes alike */
db_tensor db_slice(db_tape *t, db_tensor x, size_t first, size_t count); /* channels */
db_tensor db_cast(db_tape *t, db_tensor x, db_dtype dtype); /* f32 and bf16 */
db_tensor db_avg_pool2(db_tape *t, db_tensor x); /* [B,2H,2W,C] -> [B,H,W,C] */
db_tensor db_upsample2(db_tape *t, db_tensor x, size_t H,
                       size_t W); /* nearest; 2H, 2W of x or 1 less */
/* q [B,T,C]; k, v [B,S,C]; bias f32 [heads,T,S] or none; mask f32 [B,S], added, or none; it gets no
   gradient -> softmax(scale q k^T + bias + mask) v, [B,T,C], the heads side by side in C */
db_tensor db_attention(db_tape *t, db_tensor q, db_tensor k, db_tensor v, db_tensor bias,
                       db_tensor mask, size_t heads, float scale, int causal);
/* ids i32 [B,T], table [V,C]; an id that is not in the table is read as V - 1 */
db_tensor db_embedding(db_tape *t, db_tensor ids, db_tensor table);
db_tensor db_add_rows(db_tape *t, db_tensor x,
                      db_tensor rows); /* x [...,C] + rows [R,C], repeated */
db_tensor db_add_each(db_tape *t, db_tensor x, db_tensor e);        /* x [B,...,C] + e [B,C] */
db_tensor db_mean_tokens(db_tape *t, db_tensor x);                  /* [B,T,C] -> [B,1,C] */
db_tensor db_max_pool(db_tape *t, db_tensor x, size_t k, size_t stride); /* k x k, no padding */
db_tensor db_unit_norm(db_tape *t, db_tensor x); /* vectors of the last dimension, at length 1 */
/* Without gradients; f32, but for constants, and sinusoids, which have the context's type */
db_tensor db_constant(db_tape *t, db_dtype dtype, float value, int n_dims, const size_t *dim);
/* Embeddings of timesteps, diffusers' flip_sin_to_cos and freq_shift: x [B] -> [B,D], one half
   sin(x f_k), the other cos(x f_k), f_k = 10000^(-k / (D/2 - shift)), k < D/2 */
db_tensor db_sinusoid(db_tape *t, db_tensor x, size_t D, int cosine_first, float shift);
/* Standard normal numbers of x's shape, drawn anew in each run: see db_rng */
db_tensor db_normal_like(db_tape *t, db_tensor x, uint32_t purpose);
db_tensor db_mix(db_tape *t, db_tensor p, db_tensor x, db_tensor q,
                 db_tensor z); /* p[b] x + q[b] z */
/* Losses: f32 scalars, means over the batch, with gradients of the prediction or logits alone. pred
   [B,...,CP], target f32 [B,...,CT<=CP], weight [B] or none, pixel weights [B,H,W] or none; *each
   (or NULL) becomes every sample's own mean, without its weight. */
db_tensor db_mse(db_tape *t, db_tensor pred, db_tensor target, db_tensor weight, db_tensor pixel,
                 db_tensor *each);
/* logits [N,V], used by nothing else; targets i32 [N], -1: not counted, V or more: as V - 1; or f32
   [N,V], shares */
db_tensor db_cross_entropy(db_tape *t, db_tensor logits, db_tensor targets);

/* ---- [DB-02] the seam to hardware ---------------------------------------------------------------

   Every operation, forward and backward, as a backend has to supply it:
   X(id, name, how many of its first arguments are outputs, CPU driver, backward). The CPU drivers
   document the arguments; an optional one that is absent has present = 0. */

#define DB__OPS(X)                                                                                 \
    X(CONV2D, "conv2d", 1, db__cpu_conv2d, db__conv2d_backward)                                    \
    X(CONV2D_DX, "conv2d_dx", 1, db__cpu_conv2d_dx, NULL)                                          \
    X(CONV2D_DW, "conv2d_dw", 2, db__cpu_conv2d_dw, NULL)                                          \
    X(GROUP_NORM, "group_norm", 2, db__cpu_group_norm, db__group_norm_backward)                    \
    X(GROUP_NORM_DX, "group_norm_dx", 4, db__cpu_group_norm_dx, NULL)                              \
    X(LAYER_NORM, "layer_norm", 2, db__cpu_layer_norm, db__layer_norm_backward)                    \
    X(LAYER_NORM_DX, "layer_norm_dx", 3, db__cpu_layer_norm_dx, NULL)                              \
    X(ACT, "act", 1, db__cpu_act, db__act_backward)                                                \
    X(ACT_DX, "act_dx", 1, db__cpu_act_dx, NULL)                                                   \
    X(GATE, "gate", 1, db__cpu_gate, db__act_backward)                                             \
    X(GATE_DX, "gate_dx", 1, db__cpu_gate_dx, NULL)                                                \
    X(MUL, "mul", 1, db__cpu_mul, db__mul_backward)                                                \
    X(AXPBY, "axpby", 1, db__cpu_axpby, db__axpby_backward)                                        \
    X(FILL, "fill", 1, db__cpu_fill, NULL)                                                         \
    X(MIX, "mix", 1, db__cpu_mix, NULL)                                                            \
    X(NORMAL, "normal", 1, db__cpu_normal, NULL)                                                   \
    X(COPY, "copy", 1, db__cpu_copy, db__copy_backward)                                            \
    X(POOL2, "pool2", 1, db__cpu_pool2, db__resample_backward)                                     \
    X(UP2, "up2", 1, db__cpu_up2, db__resample_backward)                                           \
    X(MAX_POOL, "max_pool", 1, db__cpu_max_pool, db__max_pool_backward)                           \
    X(MAX_POOL_DX, "max_pool_dx", 1, db__cpu_max_pool_dx, NULL)                                   \
    X(ATTENTION, "attention", 2, db__cpu_attention, db__attention_backward)                        \
    X(ATTENTION_DX, "attention_dx", 4, db__cpu_attention_dx, NULL)                                 \
    X(EMBEDDING, "embedding", 1, db__cpu_embedding, db__embedding_backward)                        \
    X(EMBEDDING_DW, "embedding_dw", 1, db__cpu_embedding_dw, NULL)                                 \
    X(ADD_ROWS, "add_rows", 1, db__cpu_add_rows, db__add_rows_backward)                            \
    X(ADD_ROWS_DW, "add_rows_dw", 1, db__cpu_add_rows_dw, NULL)                                    \
    X(ADD_EACH, "add_each", 1, db__cpu_add_each, db__add_each_backward)                            \
    X(ADD_EACH_DE, "add_each_de", 1, db__cpu_add_each_de, NULL)                                    \
    X(MEAN, "mean", 1, db__cpu_mean, db__mean_backward)                                            \
    X(MEAN_DX, "mean_dx", 1, db__cpu_mean_dx, NULL)                                                \
    X(SINUSOID, "sinusoid", 1, db__cpu_sinusoid, NULL)                                             \
    X(POSITION_BIAS, "position_bias", 1, db__cpu_position_bias, db__position_bias_backward)        \
    X(POSITION_BIAS_DW, "position_bias_dw", 1, db__cpu_position_bias_dw, NULL)                     \
    X(MSE, "mse", 2, db__cpu_mse, db__mse_backward)                                                \
    X(MSE_DX, "mse_dx", 1, db__cpu_mse_dx, NULL)                                                   \
    X(CROSS_ENTROPY, "cross_entropy", 2, db__cpu_cross_entropy, db__cross_entropy_backward)        \
    X(CROSS_ENTROPY_DX, "cross_entropy_dx", 1, db__cpu_cross_entropy_dx, NULL)                     \
    X(ADAMW, "adamw", 3, db__cpu_adamw, NULL)                                                      \
    X(ADAMW_8BIT, "adamw_8bit", 5, db__cpu_adamw_8bit, NULL)                                       \
    X(SQUARES, "squares", 1, db__cpu_squares, NULL)

typedef enum db_op {
#define DB__ENUM(id, name, outputs, run, back) DB_OP_##id,
    DB__OPS(DB__ENUM)
#undef DB__ENUM
    DB_OP_COUNT
} db_op;

enum { DB_MAX_ARGS = 12 };

typedef struct db_arg {
    void *data; /* on the backend's device */
    size_t dim[4];
    int n_dims;
    db_dtype dtype;
    int present;
} db_arg;

/* One operation, ready to run. A backend takes `scratch_used` bytes of scratch while measuring and
   finds that much memory at `scratch` when running. The output of act, act_dx, gate_dx and axpby
   may lie on an input: an element is read before it is written, by the same thread. */
typedef struct db_call {
    db_arg a[DB_MAX_ARGS];
    size_t s[6];
    int i[4];
    float f[8];
    uint64_t seed;
    uint32_t step;
    int measuring;
    void *scratch;
    size_t scratch_used;
} db_call;

/* Memory of `alloc` is zeroed; NULL if there is none, after a db_fail that says more or without. It
   holds parameters, gradients and the optimiser's moments too, which host code reads and writes
   directly: it has to be reachable from both sides while nothing runs, which `sync` waits for at
   the end of db_run. */
struct db_backend {
    const char *name;
    void *(*alloc)(db_ctx *ctx, size_t bytes);
    void (*release)(db_ctx *ctx, void *memory);
    db_result (*copy_in)(db_ctx *ctx, void *device, const void *host, size_t bytes);
    db_result (*copy_out)(db_ctx *ctx, void *host, const void *device, size_t bytes);
    db_result (*sync)(db_ctx *ctx);
    /* All three or none (NULL): runs of a tape may be recorded and replayed. begin_run returns 1 if
       it has replayed all; else the operations follow and then end_run, which returns 0 if they
       were only recorded and have to follow once more. *recording: NULL at first, the backend's
       own, which forget frees; `key` changes with the addresses of parameters. begin_run with
       `recording` NULL: one operation on no tape follows, and no end_run. */
    int (*begin_run)(db_ctx *ctx, void **recording, uint64_t key, uint64_t seed, uint32_t step);
    int (*end_run)(db_ctx *ctx, void *recording);
    void (*forget)(db_ctx *ctx, void *recording);
    void (*run[DB_OP_COUNT])(db_ctx *ctx, db_call *call);
};

const db_backend *db_backend_cpu(void);
const db_backend *db_backend_cuda(
    const char **why); /* in dreambooth_cuda.cu; NULL without a GPU, and *why says why */
db_result db_fail(db_ctx *ctx, db_result code,
                  const char *why); /* for backends: records a failure, returns its code */

/* ---- [DB-04] the optimiser: AdamW, as in PyTorch --------------------------------------------- */

typedef struct db_optimizer_config {
    float beta1, beta2, eps, weight_decay;
    float max_grad_norm; /* gradients, those of clipped_with included, are scaled down to this norm;
                            0: never */
    int use_8bit_adam;   /* moments of 4096 and more elements in 8 bits (Dettmers et al., 2021) */
} db_optimizer_config;

typedef struct db_optimizer {
    db_ctx *ctx;            /* that of params; NULL: not in use */
    db_optimizer_config config;
    db_param_table *params; /* not owned */
    float *m, *v;           /* first and second moments, like params->data */
    uint8_t *m8, *v8;       /* use_8bit_adam: large parameters' codes; m, v have the scales */
    size_t *at, *at8;       /* [params->n + 1] where each parameter begins in m, v; in m8, v8 */
    struct db__8bit_map *map; /* [2] what the codes of m8 and v8 mean */
    uint64_t step;
    const db_param_table *clipped_with; /* its gradients count towards the same norm; or NULL */
} db_optimizer;

db_optimizer_config db_optimizer_config_default(void); /* .9, .999, 1e-8, 1e-2, 1 */
/* Before the tape that trains is recorded: it makes room for gradients (db_params_require_grad).
   `params` must outlive its steps; `config` may be NULL. Betas outside [0,1) and a negative eps or
   weight decay are DB_ERROR_ARGUMENT. db_optimizer_free is due even after a failure. */
db_result db_optimizer_init(db_optimizer *o, db_param_table *params,
                            const db_optimizer_config *config);
void db_optimizer_free(db_optimizer *o);

/* Sets all gradients of the table to 0, which runs add to. */
void db_zero_grad(db_param_table *params);

/* One update with learning rate lr. Gradients are first multiplied by grad_scale (1 / number of
   accumulated runs) and clipped; *norm (or NULL) is their norm before clipping. A norm that is not
   finite changes nothing and gives DB_ERROR_NUMERIC, an lr that is negative or not finite
   DB_ERROR_ARGUMENT. */
db_result db_optimizer_step(db_optimizer *o, float lr, float grad_scale, float *norm);

/* average = decay * average + (1 - decay) * params: an exponential moving average, which begins as
   a copy of the parameters, like params->data and in the backend's memory. NULL with the error
   set: no memory, or weights that are still in their file (db_params_fill) */
float *db_ema_create(const db_param_table *params);
void db_ema_update(const db_param_table *params, float *average, float decay);
void db_ema_free(const db_param_table *params, float *average);

typedef enum db_lr_schedule {
    DB_LR_CONSTANT,
    DB_LR_CONSTANT_WITH_WARMUP,
    DB_LR_LINEAR,
    DB_LR_COSINE,
    DB_LR_COSINE_WITH_RESTARTS,
    DB_LR_POLYNOMIAL
} db_lr_schedule;

/* The factor on the learning rate `lr` at update `step` (from 0) of `total`, as
   diffusers.optimization has it: DB_LR_POLYNOMIAL ends at a rate of 1e-7, if `lr` is higher. */
double db_lr_factor(db_lr_schedule schedule, double lr, uint64_t step, uint64_t warmup,
                    uint64_t total, double cycles, double power);

/* ---- [DB-05] JSON, safetensors ---------------------------------------------------------------

   JSON files are read into a tree that never changes. Walk it with a loop,

       for (item = node->first; item; item = item->next) ... item->key, item->string ...

   or look single members up. The tree is strict RFC 8259 with one addition: NaN, Infinity and
   -Infinity are numbers, because Python writes them and diffusers' scheduler files contain them. */

typedef enum db_json_type {
    DB_JSON_NULL, DB_JSON_BOOL, DB_JSON_NUMBER, DB_JSON_STRING, DB_JSON_ARRAY, DB_JSON_OBJECT
} db_json_type;

typedef struct db_json {
    db_json_type type;
    int is_integer;             /* number: whole, as a double or exactly; `integer` is its value  */
    int64_t integer;            /* bool: 0 or 1                                                   */
    double number;              /* number                                                         */
    const char *string;         /* string: valid UTF-8 and a final NUL; \u0000 may stand inside   */
    size_t length;              /* string: its bytes, without the final NUL                       */
    const char *key;            /* member of an object: its name; otherwise NULL                  */
    size_t key_length;
    const struct db_json *first, *next; /* first child; next sibling; NULL at the end             */
    size_t count;               /* array or object: children                                      */
    const struct db__json_document *document; /* private: says where to report errors             */
    size_t line;                /* where the value stands in the file, from 1                     */
} db_json;

/* Parses a file, or `bytes` of text (which need not stay) that errors call `name`. Returns the
   root, to be freed with db_json_free, or NULL with the error set: file, line, column, reason. */
const db_json *db_json_load(db_ctx *ctx, const char *path);
const db_json *db_json_parse(db_ctx *ctx, const char *name, const char *text, size_t bytes);

/* Frees the whole tree, strings and keys included. Takes the root; NULL is allowed. */
void db_json_free(const db_json *root);

/* The member called `key`, or NULL when there is none or `object` is NULL or not an object. Of
   equal names the last one counts. Takes time in proportion to the number of members. */
const db_json *db_json_get(const db_json *object, const char *key);

/* Element `index` of an array or object, or NULL. Takes time in proportion to `index`. */
const db_json *db_json_at(const db_json *array, size_t index);

/* The member `key` of `object`, or `otherwise` when it is absent or null (or `object` is NULL). A
   member of another type sets the context's error, naming file and line, and gives `otherwise`:
   a misread configuration must not turn into a default. The string lives as long as the tree. */
double db_json_number(const db_json *object, const char *key, double otherwise);
int64_t db_json_int(const db_json *object, const char *key, int64_t otherwise);
int db_json_bool(const db_json *object, const char *key, int otherwise);
const char *db_json_string(const db_json *object, const char *key, const char *otherwise);

enum { DB_FILE_MAX_DIMS = 8 };

/* One tensor of a file, in PyTorch's order (row-major, last dimension innermost). */
typedef struct db_file_tensor {
    const char *name;           /* the state-dict key                                             */
    db_dtype dtype;
    int n_dims;                 /* 0 for a scalar                                                 */
    size_t dim[DB_FILE_MAX_DIMS];
    size_t count;               /* elements: the product of dim; 1 for a scalar                   */
    size_t bytes;               /* count * element size                                           */
    const void *data;           /* little-endian, NOT necessarily aligned: use memcpy             */
} db_file_tensor;

/* Tensors of one safetensors file or of several shards. Files are mapped, not read: pages come in
   as they are used. An open file may be replaced (renamed over) but not shortened in place. */
typedef struct db_safetensors db_safetensors;

/* Opens and checks a whole file: header length, JSON, known element types, shapes against sizes,
   no overlap, no hole, no name twice. Nothing of the tensors' data is touched. On failure *out is
   NULL and the error names file and tensor. Close with db_safetensors_close. */
db_result db_safetensors_open(db_ctx *ctx, const char *path, db_safetensors **out);

/* The same for a file that is in memory already. `data` must stay until the close. */
db_result db_safetensors_open_memory(db_ctx *ctx, const char *name, const void *data, size_t bytes,
                                     db_safetensors **out);

/* Opens a model's weights wherever they are: the first of
       DIRECTORY/BASENAME.safetensors            DIRECTORY/BASENAME.safetensors.index.json
       DIRECTORY/BASENAME.fp16.safetensors       DIRECTORY/BASENAME.safetensors.index.fp16.json
   that exists; an index opens all shards it names. `basename` is "diffusion_pytorch_model" for
   diffusers' parts, "model" for transformers'. */
db_result db_weights_open(db_ctx *ctx, const char *directory, const char *basename,
                          db_safetensors **out);

void db_safetensors_close(db_safetensors *st); /* NULL is allowed */

/* How many tensors; tensor `index` (in the file's order) or NULL; the tensor `name` or NULL (which
   is no error: the caller knows what it needs). Pointers stay valid until the close. */
size_t db_safetensors_count(const db_safetensors *st);
const db_file_tensor *db_safetensors_at(const db_safetensors *st, size_t index);
const db_file_tensor *db_safetensors_find(const db_safetensors *st, const char *name);

/* The value of a key of `__metadata__` in the first file, or NULL. */
const char *db_safetensors_metadata(const db_safetensors *st, const char *key);

/* Converts all elements of any type to floats; `out` has room for tensor->count. F64 and integers
   are rounded to the nearest float. */
void db_file_tensor_to_f32(const db_file_tensor *tensor, float *out);

/* Writing: declare every tensor, then write their data in the order of declaration.

       db_safetensors_writer *w = db_safetensors_create(ctx, "model.safetensors");
       db_safetensors_declare(w, "weight", DB_F16, 2, dim);
       db_safetensors_write_f32(w, "weight", values);
       if (db_safetensors_finish(w) != DB_OK) ...

   The first failure sticks, so that the sequence above needs one check (with a NULL writer they do
   nothing and return DB_ERROR_ARGUMENT: db_status has the cause); the file appears under its name
   only when finish succeeds, complete and synced, and a file that was there before stays untouched
   until then. */
typedef struct db_safetensors_writer db_safetensors_writer;

/* Starts a file. `__metadata__` gets {"format": "pt"}, which transformers asks for. Returns NULL
   with the error set when the file cannot be created. */
db_safetensors_writer *db_safetensors_create(db_ctx *ctx, const char *path);

/* Adds a string to `__metadata__`. Only before the first write. */
db_result db_safetensors_add_metadata(db_safetensors_writer *w, const char *key, const char *value);

/* Announces a tensor: `n_dims` dimensions `dim`. Only before the first write. */
db_result db_safetensors_declare(db_safetensors_writer *w, const char *name, db_dtype dtype,
                                 int n_dims, const size_t *dim);

/* Writes the whole tensor `name`, which must be the next one declared: raw little-endian elements
   of the declared type, or floats that are converted (F64, F32, F16 or BF16; to nearest even). */
db_result db_safetensors_write(db_safetensors_writer *w, const char *name, const void *data);
db_result db_safetensors_write_f32(db_safetensors_writer *w, const char *name, const float *data);

/* Completes the file, puts it under its name and frees the writer. On any failure, now or before,
   nothing is left behind and the code of that failure is returned. */
db_result db_safetensors_finish(db_safetensors_writer *w);

/* Gives a file up: removes what was written and frees the writer. NULL is allowed. */
void db_safetensors_abandon(db_safetensors_writer *w);

/* ---- [DB-06] Tokenizers ----------------------------------------------------------------------

   Text to the numbers that a text encoder was trained on. Two kinds: SentencePiece unigram with
   T5's conventions, and CLIP's byte-level pair encoding. Both take UTF-8; a byte that is not valid
   becomes U+FFFD.
   A tokenizer works in its context's memory: one thread at a time. */

typedef struct db_tokenizer db_tokenizer;

typedef enum db_tokenizer_kind { DB_TOKENIZER_T5, DB_TOKENIZER_CLIP } db_tokenizer_kind;

typedef enum db_special {
    DB_SPECIAL_PAD, DB_SPECIAL_BOS, DB_SPECIAL_EOS, DB_SPECIAL_UNK
} db_special;

/* Loads a tokenizer directory: `spiece.model` makes it T5's, `vocab.json` with `merges.txt` CLIP's;
   without these, `tokenizer.json` (all that transformers 5 saves) says which it is. A path that
   ends in ".model" is such a file itself. Free with db_tokenizer_free. */
db_result db_tokenizer_load(db_ctx *ctx, const char *path, db_tokenizer **out);

/* The same from memory, which need not stay; names stand in errors. */
db_result db_tokenizer_load_spiece(db_ctx *ctx, const char *name, const void *data, size_t bytes,
                                   db_tokenizer **out);
db_result db_tokenizer_load_clip(db_ctx *ctx, const char *vocab_name, const char *vocab,
                                 size_t vocab_bytes, const char *merges_name, const char *merges,
                                 size_t merges_bytes, db_tokenizer **out);
db_result db_tokenizer_load_json(db_ctx *ctx, const char *name, const char *text, size_t bytes,
                                 db_tokenizer **out);

void db_tokenizer_free(db_tokenizer *tok); /* NULL is allowed */

/* The whole treatment of a prompt, as the pipelines ask for it (padding="max_length",
   truncation=True): exactly max_length ids, first those of the text, with T5's </s> or between
   CLIP's <|startoftext|> and <|endoftext|>, then padding. mask (or NULL) gets 1 for text and
   markers, 0 for padding. A longer text loses its end, never the markers; *truncated (or NULL)
   says so. Fails when max_length has no room for the markers, and on a word of more than 16384
   characters (CLIP). */
db_result db_tokenize(const db_tokenizer *tok, const char *text, size_t max_length, int32_t *ids,
                      int32_t *mask, int *truncated);

/* Only the text's own pieces, without markers: stores at most `capacity` ids and returns how many
   there are. After an error (see db_status) that is 0. Shows how an identifier splits. */
size_t db_tokenizer_split(const db_tokenizer *tok, const char *text, int32_t *ids, size_t capacity);

/* Ids are 0 ... size-1. A T5 encoder's embedding has more rows (32128 for 32000 pieces): the 100
   sentinels <extra_id_0> ... <extra_id_99> are 32099 down to 32000 and occur in no prompt. */
size_t db_tokenizer_size(const db_tokenizer *tok);
db_tokenizer_kind db_tokenizer_kind_of(const db_tokenizer *tok);

/* The text of a piece as the vocabulary has it ("\xe2\x96\x81" "dog" with U+2581 for a space;
   "dog</w>"), or NULL when there is no such id. */
const char *db_tokenizer_piece(const db_tokenizer *tok, int32_t id);

/* The id of a piece spelt that way, or -1. */
int32_t db_tokenizer_find(const db_tokenizer *tok, const char *piece);

/* How common a piece is, by the vocabulary: T5 has log probabilities; for CLIP minus the rank of
   the merge that made it. Larger is more common. */
float db_tokenizer_score(const db_tokenizer *tok, int32_t id);

/* The id of a special token, or -1 when the tokenizer has none (T5: no beginning). */
int32_t db_tokenizer_special(const db_tokenizer *tok, db_special which);

/* ---- [DB-07] networks -------------------------------------------------------------------------

   Text encoders, U-Nets, autoencoders and the networks of the metrics are made in one way:

       db_x_config_load   reads the file config.json at `path` into *out
       db_x_create        declares the parameters of a configuration: allocated, all zero
       db_x_load          both from DIRECTORY/config.json, weights from DIRECTORY's safetensors,
                          which are checked, and read when they are first needed (db_params_fill)
       db_x_free          frees it; db_x_forward records it on a tape of the same context

   A configuration that asks for what is not here is DB_ERROR_UNSUPPORTED, one whose numbers do not
   fit together DB_ERROR_FORMAT; a tensor that the file lacks DB_ERROR_MISSING, one of another shape
   DB_ERROR_SHAPE. On failure create and load leave *out NULL. */

/* ---- [DB-07] text encoders ------------------------------------------------------------------- */

typedef enum db_text_kind { DB_TEXT_T5, DB_TEXT_CLIP } db_text_kind;

typedef struct db_text_config { /* the names of T5's config.json, for both kinds */
    db_text_kind kind;          /* model_type "t5" (v1.1's encoder) or "clip_text_model"          */
    size_t vocab_size, d_model, d_kv, d_ff, num_layers, num_heads;
    size_t relative_attention_num_buckets, relative_attention_max_distance; /* T5 */
    size_t max_position_embeddings;                                         /* CLIP */
    float layer_norm_epsilon;
    db_activation act; /* of the feed-forward network */
    int gated;         /* T5 */
} db_text_config;

typedef struct db_text_encoder {
    db_param_table params;
    db_text_config config;
} db_text_encoder;

db_result db_text_config_load(db_ctx *ctx, const char *path, db_text_config *out);
db_result db_text_encoder_create(db_ctx *ctx, const db_text_config *config, db_text_encoder **out);
/* CLIP's tensors may lack the prefix "text_model.", as transformers 5 writes them; the table always
   has it. */
db_result db_text_encoder_load(db_ctx *ctx, const char *directory, db_text_encoder **out);
void db_text_encoder_free(db_text_encoder *e);
/* ids i32 [B,T]; mask f32 [B,T], 0 to attend and -1e9 not to, or none (Stable Diffusion never
   masks)
   -> last hidden state, after the final normalisation, [B,T,d_model] */
db_tensor db_text_forward(db_tape *t, db_text_encoder *e, db_tensor ids, db_tensor mask);

/* ---- [DB-08] the U-Net ----------------------------------------------------------------------- */

enum { DB_MAX_LEVELS = 8 };

/* The kinds of levels, by diffusers' names X(id, way down, way up) */
#define DB__BLOCKS(X)                                                                              \
    X(PLAIN, "DownBlock2D", "UpBlock2D")                                                           \
    X(CROSS_ATTN, "CrossAttnDownBlock2D", "CrossAttnUpBlock2D")                                    \
    X(RESNET, "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")                                  \
    X(SIMPLE_CROSS_ATTN, "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")

typedef enum db_block { /* PLAIN, CROSS_ATTN: Stable Diffusion's; RESNET, SIMPLE_CROSS_ATTN: IF's */
#define DB__ENUM(id, down, up) DB_BLOCK_##id,
    DB__BLOCKS(DB__ENUM)
#undef DB__ENUM
    DB_BLOCK_COUNT
} db_block;

typedef struct db_unet_config { /* diffusers' UNet2DConditionModel, names as in config.json */
    size_t in_channels, out_channels, sample_size;
    size_t n_levels;
    db_block down_block_types[DB_MAX_LEVELS], up_block_types[DB_MAX_LEVELS];
    db_block mid_block_type; /* CROSS_ATTN, SIMPLE_CROSS_ATTN; PLAIN: a residual block alone */
    size_t block_out_channels[DB_MAX_LEVELS], layers_per_block[DB_MAX_LEVELS];
    size_t attention_head_dim[DB_MAX_LEVELS]; /* SIMPLE_CROSS_ATTN: the width of a head; CROSS_ATTN:
                                                 their number */
    size_t transformer_layers_per_block[DB_MAX_LEVELS]; /* CROSS_ATTN */
    int use_linear_projection;   /* CROSS_ATTN: proj_in and proj_out, else 1x1 convolutions */
    int resnet_time_scale_shift; /* the time embedding scales and shifts ("scale_shift"); or is
                                    added ("default") */
    int only_cross_attention[DB_MAX_LEVELS], mid_block_only_cross_attention;
    size_t cross_attention_dim, encoder_hid_dim, addition_embed_type_num_heads;
    size_t time_embedding_dim, norm_num_groups;
    float norm_eps, freq_shift, resnet_out_scale_factor, mid_block_scale_factor;
    int flip_sin_to_cos;
    int resnet_skip_time_act, cross_attention_norm;
    int addition_embed_text; /* "text": the pooled text joins the time embedding */
    int class_embed_timestep; /* class_embed_type "timestep": the noise level of a super-resolver */
    db_activation act, time_embedding_act;
} db_unet_config;

typedef struct db_unet {
    db_param_table params;
    db_unet_config config;
} db_unet;

typedef struct db_unet_features {
    db_tensor up[DB_MAX_LEVELS]; /* the output of each up block, for heads that look inside */
} db_unet_features;

db_result db_unet_config_load(db_ctx *ctx, const char *path, db_unet_config *out);
db_result db_unet_create(db_ctx *ctx, const db_unet_config *config, db_unet **out);
db_result db_unet_load(db_ctx *ctx, const char *directory, db_unet **out);
void db_unet_free(db_unet *u);
/* x [B,H,W,in_channels], of super-resolution x_t and behind it the conditioning picture; timestep
   f32 [B]; text [B,T,encoder_hid_dim, or where that is 0 cross_attention_dim]; class_labels f32 [B]
   where the configuration has a class embedding (super-resolution: db_noise_level), else none
   -> [B,H,W,out_channels]. features may be NULL. */
db_tensor db_unet_forward(db_tape *t, db_unet *u, db_tensor x, db_tensor timestep, db_tensor text,
                          db_tensor class_labels, db_unet_features *features);

/* ---- [DB-08] the autoencoder of Stable Diffusion --------------------------------------------- */

typedef struct db_vae_config { /* diffusers' AutoencoderKL, names as in config.json */
    size_t in_channels, out_channels, latent_channels, sample_size, n_levels;
    size_t block_out_channels[DB_MAX_LEVELS], layers_per_block, norm_num_groups;
    float scaling_factor; /* the U-Net's latents are the autoencoder's times this */
    int use_quant_conv, use_post_quant_conv, mid_block_add_attention;
    db_activation act;
} db_vae_config;

typedef struct db_vae {
    db_param_table params;
    db_vae_config config;
} db_vae;

db_result db_vae_config_load(db_ctx *ctx, const char *path, db_vae_config *out);
db_result db_vae_create(db_ctx *ctx, const db_vae_config *config, db_vae **out);
db_result db_vae_load(db_ctx *ctx, const char *directory, db_vae **out);
void db_vae_free(db_vae *v);

size_t db_vae_factor(const db_vae *v); /* pixels to a latent, along each axis: 8 */

/* x [B,H,W,in_channels] in [-1,1] -> moments [B,h,w,2*latent_channels]: means, then log variances,
   unscaled */
db_tensor db_vae_encode_forward(db_tape *t, db_vae *v, db_tensor x);
/* z [B,h,w,latent_channels], unscaled -> [B,H,W,out_channels] */
db_tensor db_vae_decode_forward(db_tape *t, db_vae *v, db_tensor z);

/* The same on the caller's memory, one picture after the other. */
db_result db_vae_encode(db_vae *v, const float *x, size_t B, size_t H, size_t W, float *moments);
/* latents [B,h,w,latent_channels] scaled as the U-Net has them. What is larger than `tile` latents
   along an axis is decoded in tiles of that size that overlap by a quarter and are blended
   (diffusers' tiled_decode); 0: never. */
db_result db_vae_decode(db_vae *v, const float *latents, size_t B, size_t h, size_t w, size_t tile,
                        float *out);

/* ---- [DB-07] any network: LoRA, files -------------------------------------------------------- */

/* Puts a new LoRA beside a network's attention projections: A normal with standard deviation 1 /
   rank, B zero, as diffusers' scripts begin. U-Nets: to_q, to_k, to_v, to_out.0, add_k_proj,
   add_v_proj; CLIP: q_proj, k_proj, v_proj, out_proj. Fails where a LoRA is already, for rank 0,
   and for T5. */
db_result db_unet_add_lora(db_unet *u, size_t rank, float alpha, uint64_t seed);
db_result db_text_encoder_add_lora(db_text_encoder *e, size_t rank, float alpha, uint64_t seed);

/* Fills a table from an open file, which errors call `what` (every parameter must be there in its
   shape, else the table stays as it is; what the file has besides is not read) and writes one, as
   `dtype`. `values` is params->data, once db_params_fill has read it, or an average of it. */
db_result db_params_load(db_param_table *p, db_safetensors *st, const char *what);
db_result db_params_save(const db_param_table *p, const float *values, const char *path,
                         db_dtype dtype);

/* ---- [DB-09] noise schedule and samplers ----------------------------------------------------- */

typedef enum db_prediction { DB_PREDICT_EPSILON, DB_PREDICT_SAMPLE, DB_PREDICT_V } db_prediction;
typedef enum db_spacing { /* DEFAULT, where the file names none: LINSPACE for DPM-Solver++, else
                             LEADING */
                          DB_SPACING_DEFAULT,
                          DB_SPACING_LEADING,
                          DB_SPACING_TRAILING,
                          DB_SPACING_LINSPACE
} db_spacing;
typedef enum db_variance {
    DB_VARIANCE_FIXED_SMALL,
    DB_VARIANCE_FIXED_SMALL_LOG,
    DB_VARIANCE_FIXED_LARGE,
    DB_VARIANCE_FIXED_LARGE_LOG,
    DB_VARIANCE_LEARNED,
    DB_VARIANCE_LEARNED_RANGE
} db_variance;
typedef enum db_sampler {
    DB_SAMPLER_DDPM,
    DB_SAMPLER_DDIM,
    DB_SAMPLER_DPMSOLVER
} db_sampler; /* the last: DPM-Solver++ 2M */
typedef enum db_solver_type { DB_SOLVER_MIDPOINT, DB_SOLVER_HEUN } db_solver_type;

typedef struct db_schedule { /* names as in scheduler_config.json */
    size_t num_train_timesteps;
    double *alphas_cumprod; /* [num_train_timesteps], alpha_t^2 of the paper */
    db_ctx *ctx;
    db_sampler sampler; /* that of the file's class; one that is not here (PNDM, Euler ...):
                           DPM-Solver++ */
    db_prediction prediction_type;
    db_spacing timestep_spacing;
    db_variance variance_type;
    int clip_sample, thresholding, steps_offset, set_alpha_to_one;
    double clip_sample_range, dynamic_thresholding_ratio, sample_max_value;
    /* DPM-Solver++ */
    db_solver_type solver_type;
    int solver_order, lower_order_final, euler_at_final, final_sigma_zero;
    double lambda_min_clipped;
    char unsupported[96]; /* what the file asks of it that is not here: it then draws nothing */
} db_schedule;

/* From the file scheduler_config.json at `path`; or of a beta_schedule "linear", "scaled_linear",
   "squaredcos_cap_v2", the rest diffusers' defaults. After a failure there is nothing to free. */
db_result db_schedule_load(db_ctx *ctx, const char *path, db_schedule *out);
db_result db_schedule_init(db_ctx *ctx, const char *beta_schedule, double beta_start,
                           double beta_end, size_t steps, db_schedule *out);
void db_schedule_free(db_schedule *s);

/* alpha_t and sigma_t of x_t = alpha_t x + sigma_t eps */
void db_schedule_coefficients(const db_schedule *s, size_t t, float *alpha, float *sigma);

/* One way from noise to clean images: timestep[0 ... n-1], and what a multistep solver keeps. */
typedef struct db_trajectory {
    const db_schedule *schedule;
    db_sampler sampler;
    float eta; /* DDIM's: 0 deterministic, 1 as noisy as DDPM                       */
    int use_clipped_model_output; /* DDIM's: take eps anew from the clipped or thresholded x0 */
    size_t n, *timestep;
    float *x0, *last_x0; /* predictions of the clean images, of this step and the one before  */
    size_t count;
} db_trajectory;

/* n timesteps for `count` numbers (all images together); eta 0. *out needs db_trajectory_free in
   any case. */
db_result db_trajectory_init(const db_schedule *s, db_sampler sampler, size_t n, size_t count,
                             db_trajectory *out);
void db_trajectory_free(db_trajectory *tr);

/* Step k, in order: x [B,P,C] from timestep[k] to the next, in place. pred [B,P,CP] is the
   network's output after guidance, CP = C or 2C (learned variance); noise [B,P,C] standard normal,
   needed if db_trajectory_draws. */
db_result db_trajectory_step(db_trajectory *tr, size_t k, size_t B, size_t P, size_t C, size_t CP,
                             const float *pred, const float *noise, float *x);
int db_trajectory_draws(const db_trajectory *tr, size_t k);

/* Classifier-free guidance in place: pred holds [2B,P,CP], unconditional first; its first half
   becomes uncond + scale (cond - uncond) in the first C channels and the text's variance in the
   others. */
void db_guide(size_t B, size_t P, size_t C, size_t CP, float scale, float *pred);

/* ---- [DB-10] super-resolution -------------------------------------------------------------------

   A noise level is a timestep of the image_noising_scheduler, taken as a real number: -1 is no
   noise, and the levels between -1 and 0 reach variances below the schedule's first (the paper's
   1e-5). */

double db_noise_variance(const db_schedule *noising, double level); /* sigma^2 of a level */
double db_noise_level(const db_schedule *noising, double variance); /* the level of a variance */

/* The small image of a training pair: means of factor x factor pixels. image [H,W,C] -> out
   [H/factor, W/factor, C]; what is left over at the right and the bottom is not read. */
void db_downsample(const float *image, size_t H, size_t W, size_t C, size_t factor, float *out);

/* What a super-resolution network reads beside x_t: the small image low [h,w,C], upscaled to H x W
   with aligned corners and noised at `level`; the window [y0,y0+wh) x [x0,x0+ww) of it into out
   [wh,ww,C]. Training and sampling both go through here, so that they cannot differ. */
void db_condition_low_res(const db_schedule *noising, double level, const db_rng *rng,
                          const float *low, size_t h, size_t w, size_t C, size_t H, size_t W,
                          size_t y0, size_t x0, size_t wh, size_t ww, float *out);

/* ---- [DB-11] sampling ------------------------------------------------------------------------ */

typedef struct db_sample_config {
    db_sampler sampler;
    size_t num_inference_steps;
    float guidance_scale; /* 1: none, and half the work                                           */
    float guidance_stop;  /* after this share of the steps the prompt's prediction stands alone, and
                             costs half: what guidance adds at low noise is mostly noise
                             (Kynkaanniemi et al., 2024); 1: never                                */
    float eta;            /* DDIM's                                                               */
    int use_clipped_model_output; /* DDIM's, see db_trajectory; diffusers' pipelines have 0, which
                             makes a difference only where x0 is clipped or thresholded           */
    uint64_t seed;        /* sample b draws its noise from (seed + b)                             */
    const float *low_res; /* super-resolution: [B,H,W,C] the conditioning image, upscaled to H, W
                             and noised already; NULL otherwise                                   */
    float noise_level;    /* the class label that says how much it was noised                     */
    const float *latents; /* the initial noise as diffusers takes it, [n,C,h,w]; NULL: drawn      */
    int latent;           /* db_sample: what is drawn are latents, not to be clipped to [-1,1]    */
    size_t tile;          /* the network sees squares of so many pixels (latents), a quarter shared
                             with the next, and their predictions are blended: memory for a square
                             instead of the picture; 0: the whole                                 */
    size_t vae_tile;      /* latent models: decode in tiles of so many latents (see db_vae_decode);
                             0: of the autoencoder's sample_size, but only above a megapixel      */
} db_sample_config;

/* DDPM, 100 steps, guidance 7 in all of them, seed 0: IF's stage I; use_clipped_model_output on.
   diffusers draws Stable Diffusion with p->scheduler.sampler, 50 steps and guidance 7.5. */
db_sample_config db_sample_config_default(void);

/* Draws B images of C channels. text [2B,T,D] holds the encodings of the negative prompts (not
   read at guidance_scale 1), then of the prompts; out [B,H,W,C] in [-1,1], or latents. Each image
   depends on its own seed and prompt alone. */
db_result db_sample(db_unet *u, const db_schedule *s, const db_sample_config *config,
                    const float *text, size_t T, size_t D, size_t B, size_t H, size_t W, size_t C,
                    float *out);

/* Encodes n prompts: [n,T,d_model] into out, padded to T. For T5 they are put into lower case,
   without blanks around, and the padding is masked inside the encoder, as in IF's pipeline; not for
   CLIP, as in Stable Diffusion's. `truncated` (or NULL) counts the prompts that were cut. */
db_result db_encode(db_text_encoder *e, const db_tokenizer *tok, const char *const *prompts,
                    size_t n, size_t T, float *out, size_t *truncated);

/* A diffusers directory (IFPipeline, IFSuperResolutionPipeline, StableDiffusionPipeline; parts that
   it leaves out are NULL), or a Stable Diffusion 1.x file in the original (LDM) layout, whose
   tokenizer lies beside it in tokenizer/. */
typedef struct db_pipeline {
    db_ctx *ctx;
    char *directory; /* of a single file: where it lies */
    db_tokenizer *tokenizer;
    db_text_encoder *text_encoder;
    db_unet *unet;
    db_vae *vae;                          /* latent diffusion only */
    db_schedule scheduler, image_noising; /* the latter of super-resolution only. Another one may
                                             be put in its place; the file's is saved */
    int super_resolution;
    int tuned;       /* private: a learned variance is one no more, in the saved file either */
    int released[2]; /* private: text encoder, autoencoder ...          */
    size_t positions; /* ... and the former's max_position_embeddings   */
    struct db__configs
        *single_file; /* private: what a single file says in place of the directory's .json files */
} db_pipeline;

/* What IF's pipelines pad prompts to; Stable Diffusion's to their encoder's positions, which are as
   many. */
enum { DB_PROMPT_TOKENS = 77 };

/* Opens a directory or a file: everything is checked, the weights stay on the disk until they are
   needed (db_params_fill). Other kinds of checkpoints (Stable Diffusion XL, a pickle, a lone
   LoRA file ...) are DB_ERROR_UNSUPPORTED, and the error says what they are and what to do. Free
   with db_pipeline_free. */
db_result db_pipeline_load(db_ctx *ctx, const char *path, db_pipeline **out);
void db_pipeline_free(db_pipeline *p);

/* Frees the text encoder, the autoencoder or both before the rest, for their memory: training needs
   neither once it has begun (but a text encoder that it trains). Afterwards nothing can be drawn
   with the pipeline, and no other training prepared. db_pipeline_save still writes both, from the
   pipeline's files. Keeps what came from a single file. */
void db_pipeline_release(db_pipeline *p, int text_encoder, int vae);

/* Writes the pipeline as a directory that diffusers loads: the weights as `dtype`, the rest as it
   was loaded. The directory is made if need be; where weights in shards stood, their index is
   removed, which diffusers would read first. A text encoder that is NULL is left out; what was
   released is copied from its file. A LoRA beside the weights is not written: db_lora_merge before,
   or db_pipeline_save_lora. */
db_result db_pipeline_save(const db_pipeline *p, const char *directory, db_dtype dtype);

/* Writes a Stable Diffusion pipeline as a single .safetensors file in the original (LDM) layout.
   The configurations go into its metadata, which other programs skip and db_pipeline_load reads. */
db_result db_pipeline_save_ldm(const db_pipeline *p, const char *path, db_dtype dtype);

/* A LoRA as diffusers' scripts write it, with today's names or peft's: `path` is the file, or
   its folder, where it is called pytorch_lora_weights.safetensors. What it has for the U-Net and
   the text encoder is put beside their layers (db_lora_merge makes it one with them); a LoRA of
   other layers or another naming is refused. As in db_dreambooth_create, a learned variance gives
   way to fixed_small. save writes what both have, as `dtype`, under that name into `directory`,
   which is made if need be. */
db_result db_pipeline_load_lora(db_pipeline *p, const char *path);
db_result db_pipeline_save_lora(const db_pipeline *p, const char *directory, db_dtype dtype);

/* Draws n images [n,H,W,3] in [-1,1], prompt k with seed config->seed + k; `negative` NULL means
   "". H and W are multiples of db_vae_factor for a latent model, of 2^(n_levels - 1) for a U-Net of
   IF's blocks, here and in db_upscale. Up to eight are drawn together
   (above 512 x 512 pixels one), which no picture depends on: for the least memory ask for one at a
   time. Here and in db_upscale latent, low_res and noise_level of config are not looked at. */
db_result db_generate(db_pipeline *p, const char *const *prompts, size_t n, const char *negative,
                      const db_sample_config *config, size_t H, size_t W, float *out);

/* Super-resolution of n images low [n,h,w,3] to [n,H,W,3], with `p` the super-resolution pipeline
   and `text` the pipeline whose text encoder it shares, both of one context. `level`: how much
   noise the small image gets (see db_noise_level). */
db_result db_upscale(db_pipeline *p, db_pipeline *text, const char *const *prompts, size_t n,
                     const char *negative, const db_sample_config *config, double level,
                     const float *low, size_t h, size_t w, size_t H, size_t W, float *out);

/* ---- [DB-12] DreamBooth ---------------------------------------------------------------------- */

typedef struct db_image { /* pixels of the caller */
    const uint8_t *rgb;   /* [h][w][3] */
    size_t w, h;
} db_image;

/* Filters for scaling pictures, in Pillow's numbers */
typedef enum db_filter { DB_FILTER_BILINEAR = 2, DB_FILTER_BICUBIC = 3 } db_filter;

/* n numbers of drawn pictures, [-1,1], to bytes; what lies outside is cut off. */
void db_to_rgb(const float *x, size_t n, uint8_t *rgb);

/* Scales to exactly H x W with a triangle filter that widens when it shrinks: out [H,W,3] in
   [-1,1]. */
db_result db_resize(db_ctx *ctx, const db_image *image, size_t H, size_t W, float *out);

typedef struct db_dreambooth_config {
    const char *instance_prompt; /* "a [V] dog" */
    const char *class_prompt;    /* "a dog"; NULL: no prior preservation    */
    float prior_loss_weight;     /* lambda     */
    size_t resolution; /* photos are scaled until their shorter side has this many pixels */
    size_t crop_size;  /* side of the squares trained on; 0: the resolution. Super-resolution
                          learns from crops and draws whole pictures */
    int center_crop; /* 0: random crops                                                          */
    size_t train_batch_size, class_batch_size;
    size_t gradient_accumulation_steps;
    size_t max_train_steps; /* where the schedule of the learning rate ends; the caller counts */
    int gradient_checkpointing, train_text_encoder;
    int in_sequence; /* class samples after the instance's, not in one batch with them: the same
                        gradient, less memory, more time                                         */
    float snr_gamma; /* min-SNR weights of both terms' samples (5 is usual); 0: plain; INFINITY:
                        those of the loss in epsilon, whatever the network predicts               */
    float noise_offset; /* this much of one normal number for each sample and channel joins the
                           noise, so that a picture's mean can be learnt (0.1 is usual); 0: none */
    float learning_rate;
    db_lr_schedule lr_scheduler;
    size_t lr_warmup_steps; /* updates; as in diffusers DB_LR_CONSTANT has none */
    double lr_num_cycles, lr_power;
    db_optimizer_config optimizer;
    size_t lora_rank; /* not 0: the weights stay, a LoRA of that rank is trained beside the U-Net's
                         attention (and the text encoder's, with train_text_encoder); one that is
                         there already goes on, with its own rank and alpha                       */
    float lora_alpha; /* 0: the rank                                                              */
    double noise_level; /* super-resolution: the level of the small image's noise */
    size_t upscale; /* super-resolution: how many times smaller the small image is              */
    uint64_t seed;
} db_dreambooth_config;

/* lambda 1, photos of 64 pixels (set it to what the model draws), 4 samples of each term, 400 steps
   at a constant 5e-6, AdamW's defaults, small pictures 4 times smaller and without noise; no other
   option is on */
db_dreambooth_config db_dreambooth_config_default(void);

typedef struct db_dreambooth db_dreambooth;

typedef struct db_dreambooth_losses {
    float total, instance, prior; /* of the last step; prior before lambda */
    float grad_norm, lr;
} db_dreambooth_losses;

/* Prepares to fine-tune p's U-Net (and text encoder) in place. `text` is the pipeline with the
   text encoder: p itself for the base; both are of one context and must outlive *out. Photos are
   copied: the shorter side is scaled to the resolution, then cropped. Class images
   [n_class,resolution,resolution,3] in [-1,1] are copied too; NULL without prior preservation.
   Fails without photos, without class images for a class prompt, and when sizes or batches are 0 or
   do not fit. A latent model's pictures go through the encoder here, once: whole, to be cropped as
   latents (that is, in steps of db_vae_factor pixels), or with center_crop their middles. Pictures
   are never mirrored. A learned variance, which is not trained, gives way to fixed_small in
   p->scheduler. Afterwards p->vae and, unless it is trained, the text encoder are not used any
   more: see db_pipeline_release. */
db_result db_dreambooth_create(db_pipeline *p, db_pipeline *text,
                               const db_dreambooth_config *config, const db_image *photos,
                               size_t n_photos, const float *class_images, size_t n_class,
                               db_dreambooth **out);
void db_dreambooth_free(db_dreambooth *d);

void db_dreambooth_plan(const db_dreambooth *d,
                        db_memory_plan *plan); /* of one step; parameters besides */
size_t db_dreambooth_steps_done(const db_dreambooth *d);

/* A step's passes, forward and backward, without its update: time it to know what a step will take.
   It leaves gradients behind, which every step clears. */
db_result db_dreambooth_rehearse(db_dreambooth *d);

/* One update of the weights; `losses` may be NULL. A loss or gradient that is not a number
   changes nothing and gives DB_ERROR_NUMERIC; cancelled by db_config.progress, the update is done
   and DB_ERROR_CANCELLED told. */
db_result db_dreambooth_step(db_dreambooth *d, db_dreambooth_losses *losses);

/* The whole state of training: what is trained (with lora_rank the factors alone), moments, step.
   Resumed into a db_dreambooth made anew of the same original model, configuration, photos and
   class images, it goes on to the same bits; of these nothing but sizes is checked. After
   DB_ERROR_CANCELLED save works once db_clear_error has been called. */
db_result db_dreambooth_save(const db_dreambooth *d, const char *path);
db_result db_dreambooth_resume(db_dreambooth *d, const char *path);

/* The seed of class image `index`: a function of the class prompt and the index alone, so that a
   larger pool contains the smaller. That of image 0 plus `index`, as db_generate counts. */
uint64_t db_class_image_seed(const char *class_prompt, size_t index);

/* ---- [DB-13] metrics -------------------------------------------------------------------------

   The paper's measures of a fine-tuned model, from three published networks, each a directory with
   config.json and model.safetensors:

     DINO    transformers' ViTModel (facebook/dino-vits16), with preprocessor_config.json
     CLIP    transformers' CLIPModel (openai/clip-vit-base-patch32 and others), with
             preprocessor_config.json and its tokenizer; where no text is compared, a
             CLIPVisionModelWithProjection does
     LPIPS   AlexNet and the lpips package's linear layers (see db_lpips)

   What embeds and measures pictures computes in f32 whatever the context's `compute` is, the
   _forward functions in their tape's type, the context's. Pictures are db_images of the caller, of
   any size (LPIPS: all of one size); nothing keeps a pointer to them. */

/* What is done to a picture before a network sees it: preprocessor_config.json. */
typedef struct db_image_processor {
    int do_resize, do_center_crop, do_rescale, do_normalize;
    size_t shortest_edge; /* the shorter side becomes that long; 0: width x height, both as given */
    size_t width, height, crop_width, crop_height;
    db_filter resample;
    double rescale_factor;
    float image_mean[3], image_std[3];
} db_image_processor;

/* Reads preprocessor_config.json of ViTImageProcessor or CLIPImageProcessor (also under their old
   names, ...FeatureExtractor); what the file leaves out has that class's default. */
db_result db_image_processor_load(db_ctx *ctx, const char *path, db_image_processor *out);

/* Scales and crops as Pillow does, to the bit, and normalises: out [H,W,3]. Fails with
   DB_ERROR_SHAPE when the settings give another size for this picture, or scale it to more than
   100 million pixels before they crop. */
db_result db_preprocess(db_ctx *ctx, const db_image_processor *p, const db_image *image, size_t H,
                        size_t W, float *out);

typedef struct db_vision_config { /* a vision transformer, names as in config.json */
    size_t hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, image_size,
           patch_size, num_channels;
    float layer_norm_eps;
    db_activation hidden_act;
    int qkv_bias; /* ViT; CLIP always has it */
} db_vision_config;

/* ViT as DINO trains it. A picture's embedding is the class token after the last normalisation. */
typedef struct db_vit {
    db_param_table params;
    db_vision_config config;
    db_image_processor processor;
} db_vit;

db_result db_vit_config_load(db_ctx *ctx, const char *path, db_vision_config *out);
/* The processor is zero, too. */
db_result db_vit_create(db_ctx *ctx, const db_vision_config *config, db_vit **out);
db_result db_vit_load(db_ctx *ctx, const char *directory, db_vit **out);
void db_vit_free(db_vit *m);
/* x f32 [B,S,S,3], S = image_size (other sizes fail) -> [B,hidden_size] */
db_tensor db_vit_forward(db_tape *t, db_vit *m, db_tensor x);
/* n pictures -> out [n,hidden_size], as they are, not of length 1 */
db_result db_vit_embed(db_vit *m, const db_image *images, size_t n, float *out);

typedef struct db_clip_config {
    db_vision_config vision;
    db_text_config text;  /* num_layers 0: no text tower */
    size_t projection_dim;
    int64_t eos_token_id; /* a text's vector is there; 2, in OpenAI's files: at the largest id */
} db_clip_config;

typedef struct db_clip {
    db_param_table params;
    db_clip_config config;
    db_image_processor processor;
    db_tokenizer *tokenizer; /* owned; NULL without a text tower, and after db_clip_create */
} db_clip;

db_result db_clip_config_load(db_ctx *ctx, const char *path, db_clip_config *out);
db_result db_clip_create(db_ctx *ctx, const db_clip_config *config, db_clip **out);
db_result db_clip_load(db_ctx *ctx, const char *directory, db_clip **out);
void db_clip_free(db_clip *m);
/* x f32 [B,S,S,3] -> [B,projection_dim] */
db_tensor db_clip_image_forward(db_tape *t, db_clip *m, db_tensor x);
/* ids i32 [B,T]; ends i32 [B,1]: b T + db_clip_end of row b -> [B,projection_dim] */
db_tensor db_clip_text_forward(db_tape *t, db_clip *m, db_tensor ids, db_tensor ends);
size_t db_clip_end(const db_clip *m, const int32_t *ids, size_t T);
/* -> out [n,projection_dim], not of length 1. Longer texts lose their ends. */
db_result db_clip_embed_images(db_clip *m, const db_image *images, size_t n, float *out);
db_result db_clip_embed_texts(db_clip *m, const char *const *texts, size_t n, float *out);

/* LPIPS (Zhang et al., 2018), version 0.1: the distance of two pictures is a weighted squared
   difference of AlexNet's features, each pixel's features at length 1. No package ships it as one
   safetensors file; this is the layout:

     features.{0,3,6,8,10}.{weight,bias}   torchvision's alexnet(), the convolutions
     lin{0,1,2,3,4}.model.1.weight         [1,C,1,1], the lpips package's linear layers

   and config.json holds {"model_type": "lpips"}. A smaller network of the same build says so there
   with lists of five: "channels" (64, 192, 384, 256, 256), "kernel_size" (11, 5, 3, 3, 3), "stride"
   (4, 1, 1, 1, 1), "padding" (2, 2, 1, 1, 1), "pool" (0, 1, 1, 0, 0: whether a maximum over 3 x 3
   pixels, stride 2, stands before it). */
enum { DB_LPIPS_LAYERS = 5 };

typedef struct db_lpips_config {
    size_t channels[DB_LPIPS_LAYERS], kernel_size[DB_LPIPS_LAYERS], stride[DB_LPIPS_LAYERS],
           padding[DB_LPIPS_LAYERS], pool[DB_LPIPS_LAYERS];
} db_lpips_config;

typedef struct db_lpips {
    db_param_table params;
    db_lpips_config config;
    /* LPIPS's scaling layer, which is ImageNet's normalisation; the size stays */
    db_image_processor processor;
} db_lpips;

db_result db_lpips_config_load(db_ctx *ctx, const char *path, db_lpips_config *out);
db_result db_lpips_create(db_ctx *ctx, const db_lpips_config *config, db_lpips **out);
db_result db_lpips_load(db_ctx *ctx, const char *directory, db_lpips **out);
void db_lpips_free(db_lpips *m);
/* x, y f32 [B,H,W,3] from the processor -> distances [B,1] */
db_tensor db_lpips_forward(db_tape *t, db_lpips *m, db_tensor x, db_tensor y);
/* The distances of all pairs i < j of n pictures of one size: (0,1), (0,2) ... (n-2,n-1) into out
   [n (n-1) / 2]; of two pictures, one. Holds all pictures' features: 130 kB for 64 x 64 pixels,
   2.5 MB for 256 x 256. */
db_result db_lpips_distances(db_lpips *m, const db_image *images, size_t n, float *out);

/* Cosines of embeddings a [n,D], b [m,D], in double precision: the mean over all pairs (a_i, b_j);
   over the pairs i < j within a; over the pairs (a_i, b_i). Not a number when there is no pair or a
   vector is zero. */
double db_cosine_between(const float *a, size_t n, const float *b, size_t m, size_t D);
double db_cosine_within(const float *a, size_t n, size_t D);
double db_cosine_paired(const float *a, const float *b, size_t n, size_t D);

/* (generated - floor) / (real - floor): subject fidelity between what the original model's
   "a [class]" gives by itself (floor) and what photos of the subject have among them (real). */
double db_normalized_fidelity(double generated, double real, double floor);
/* (PRES of the tuned model - PRES of the original) / (fidelity - PRES of the original): 0 where
   "a [class]" is what it was, 1 where it has become the subject. */
double db_drift(double pres_tuned, double pres_original, double fidelity);

/* X(field, name, what it is): mean cosines of embeddings, or LPIPS, between ... */
#define DB_SCORES(X)                                                                               \
    X(dino, "DINO", "generated pictures and real photos")                                          \
    X(dino_held_out, "DINO held out", "generated pictures and photos not trained on")              \
    X(dino_real, "DINO real", "different real photos: the ceiling")                                \
    X(clip_i, "CLIP-I", "generated pictures and real photos")                                      \
    X(clip_i_real, "CLIP-I real", "different real photos: the ceiling")                            \
    X(clip_t, "CLIP-T", "generated pictures and their prompts")                                    \
    X(div, "DIV", "generated pictures of one prompt, without prompts of all; LPIPS")               \
    X(pres, "PRES", "the tuned model's class pictures and the photos; DINO, lower is better")      \
    X(pres_original, "PRES original", "the same of the model before fine-tuning: the floor")       \
    X(class_diversity, "class diversity", "the tuned model's class pictures; LPIPS")               \
    X(class_diversity_original, "class diversity original", "the same before fine-tuning")         \
    X(normalized_fidelity, "normalized fidelity", "floor and ceiling: where DINO lies")            \
    X(drift, "drift", "PRES original and DINO: where PRES lies")

typedef struct db_scores {
#define DB__FIELD(field, name, what) double field; /* NAN: its pictures or network are missing */
    DB_SCORES(DB__FIELD)
#undef DB__FIELD
} db_scores;

typedef struct db_evaluation { /* what to measure; nothing is owned, anything may be left out */
    db_vit *dino;
    db_clip *clip;
    db_lpips *lpips;
    const db_image *generated, *real, *held_out; /* of the subject */
    size_t n_generated, n_real, n_held_out;
    /* [n_generated]; equal ones make DIV's groups. CLIP-T compares with these very words: leave the
       identifier out */
    const char *const *prompts;
    /* of "a [class]", by the tuned and by the original model */
    const db_image *class_images, *original_class;
    size_t n_class, n_original;
} db_evaluation;

/* `ctx` is that of the networks. */
db_result db_evaluate(db_ctx *ctx, const db_evaluation *e, db_scores *out);

#ifdef __cplusplus
}
#endif
#endif /* DREAMBOOTH_H */

/* ==== stop here if you only want the API ====================================================== */

#ifdef DREAMBOOTH_IMPLEMENTATION
#if !defined(DB__PASS_SCALAR) && !defined(DB__PASS_AVX2) && !defined(DB__PASS_AVX512) && \
    !defined(DB__PASS_AVX512BF16) && \
    !defined(DB__PASS_AMX) && !defined(DB__PASS_NEON)

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#if (defined(__unix__) || defined(__APPLE__)) && !defined(DB_NO_POSIX)
#define DB__POSIX
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if (defined(__x86_64__) || defined(__amd64__)) && defined(__GNUC__)
#include <cpuid.h>
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized" /* gcc 12 warns about its own intrinsics */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== [DB-01] Platform, allocation, errors, log, random numbers, threads ========================

   Everything below stands on these few functions. Two habits keep the rest short:

   - Errors stick. The first failure is written into the context (code and sentence); later calls
     that see it return at once, so that a forward pass is checked a single time, at its end.
   - Sizes are products of untrusted numbers, so they go through db__mul and db__alloc, which refuse
     to overflow.

   Easy to get wrong
   - A random number belongs to (seed, purpose, step, index), never to "the next one": a resumed run
     and a run with another number of threads draw the same numbers.                             */

#if defined(__GNUC__) || defined(__clang__)
#define DB__PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define DB__PRINTF(f, a)
#endif

#ifdef _OPENMP
#define DB__OMP(text) _Pragma(#text)
#else
#define DB__OMP(text)
#endif

#define DB__MIN(a, b) ((a) < (b) ? (a) : (b))
#define DB__MAX(a, b) ((a) > (b) ? (a) : (b))
#define DB__CEIL_DIV(a, b) (((a) + (b) - 1) / (b))
#define DB__ROUND_UP(a, b) (DB__CEIL_DIV(a, b) * (b))

struct db_ctx {
    db_config config;
    const struct db__isa *isa;   /* the kernels in use */
    const db_backend *backend;
    db_result result;        /* the first failure; DB_OK while there is none */
    char message[1024];
    size_t live_bytes, peak_bytes; /* of memory that this context has allocated */
    size_t batches_before, batches; /* of sampling: what progress is reported of    */
};

/* ---- errors ---------------------------------------------------------------------------------- */

const char *db_result_name(db_result r)
{
    switch (r) {
#define DB__CASE(name, text) case name: return text;
    DB_RESULTS(DB__CASE)
#undef DB__CASE
    }
    return "unknown result";
}

/* Records a failure, unless there is one already; returns the code of the first. */
DB__PRINTF(3, 4) static db_result db__fail(db_ctx *ctx, db_result code, const char *format, ...)
{
    if (ctx->result == DB_OK) {
        va_list args;
        va_start(args, format);
        vsnprintf(ctx->message, sizeof ctx->message, format, args);
        va_end(args);
        ctx->result = code;
    }
    return ctx->result;
}

db_result db_fail(db_ctx *ctx, db_result code, const char *why)
{
    return db__fail(ctx, code, "%s", why);
}

/* Tells the caller how far something is; does nothing once there is an error. */
static db_result db__progress(db_ctx *ctx, const char *what, size_t done, size_t total)
{
    if (ctx->result != DB_OK || !ctx->config.progress) return ctx->result;
    if (!ctx->config.progress(ctx->config.user, what, done, total)) return DB_OK;
    return db__fail(ctx, DB_ERROR_CANCELLED, "%s was cancelled after step %zu of %zu", what, done,
                    total);
}

DB__PRINTF(3, 4) static void db__log(db_ctx *ctx, db_log_level level, const char *format, ...)
{
    char line[1024];
    va_list args;
    if (!ctx->config.log) return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    ctx->config.log(ctx->config.user, level, line);
}

db_result db_status(const db_ctx *ctx) { return ctx->result; }
const char *db_last_error(const db_ctx *ctx) { return ctx->result == DB_OK ? "" : ctx->message; }

void db_clear_error(db_ctx *ctx)
{
    ctx->result = DB_OK;
    ctx->message[0] = 0;
}

/* ---- allocation ------------------------------------------------------------------------------ */

/* a * b, or 0 with *overflow set. */
static size_t db__mul(size_t a, size_t b, int *overflow)
{
    if (a && b > (size_t)-1 / a) {
        *overflow = 1;
        return 0;
    }
    return a * b;
}

/* a + b, or SIZE_MAX, which no allocation gives. */
static size_t db__sum(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }

/* Every block carries its size in the 64 bytes before it, which also keeps it aligned for SIMD. */
enum { DB__ALIGN = 64 };
typedef struct db__block {
    void *base;
    size_t bytes;
} db__block;

/* Zeroed bytes, 64-byte aligned, or NULL without a failure. */
static void *db__try_alloc(db_ctx *ctx, size_t bytes)
{
    char *base = NULL, *user;
    if (bytes <= SIZE_MAX - 2 * DB__ALIGN)
        base = (char *)ctx->config.allocate(ctx->config.user, bytes + 2 * DB__ALIGN);
    if (!base) return NULL;
    user = (char *)(((uintptr_t)base + 2 * DB__ALIGN - 1) & ~(uintptr_t)(DB__ALIGN - 1));
    ((db__block *)(void *)user)[-1].base = base;
    ((db__block *)(void *)user)[-1].bytes = bytes;
    ctx->live_bytes += bytes;
    ctx->peak_bytes = DB__MAX(ctx->peak_bytes, ctx->live_bytes);
    return memset(user, 0, bytes);
}

static void *db__fail_memory(db_ctx *ctx, size_t count, size_t size)
{
    db__fail(ctx, DB_ERROR_MEMORY, "out of memory: %zu x %zu bytes asked for, %zu in use", count,
             size, ctx->live_bytes);
    return NULL;
}

/* count * size bytes as above; NULL with the error set when that is too much. */
static void *db__alloc(db_ctx *ctx, size_t count, size_t size)
{
    int overflow = 0;
    size_t bytes = db__mul(count, size, &overflow);
    void *memory = overflow ? NULL : db__try_alloc(ctx, bytes);
    return memory ? memory : db__fail_memory(ctx, count, size);
}

static void db__free(db_ctx *ctx, void *memory)
{
    if (!memory) return;
    ctx->live_bytes -= ((db__block *)memory)[-1].bytes;
    ctx->config.release(ctx->config.user, ((db__block *)memory)[-1].base);
}

/* The array (of `size`-byte items) with room for at least `count` items, moved if need be; NULL,
   and the array as it was, when memory is short. */
static void *db__grow(db_ctx *ctx, void *array, size_t *capacity, size_t count, size_t size)
{
    size_t wanted = DB__MAX(DB__MAX(count, *capacity * 2), 16);
    void *grown;
    if (count <= *capacity) return array;
    grown = db__alloc(ctx, wanted, size);
    if (!grown) return NULL;
    if (array) memcpy(grown, array, *capacity * size);
    db__free(ctx, array);
    *capacity = wanted;
    return grown;
}

static char *db__strdup(db_ctx *ctx, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = (char *)db__alloc(ctx, n, 1);
    return copy ? (char *)memcpy(copy, text, n) : NULL;
}

/* ---- half-precision numbers ------------------------------------------------------------------
   f16: 1 sign, 5 exponent, 10 fraction bits. bf16: the upper half of an f32.                     */

static uint32_t db__float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float db__bits_to_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float db__f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 0x1Fu, fraction = h & 0x3FFu;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, which a float holds exactly */
        float f = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    /* The exponents' biases are 15 and 127; all ones means infinity or NaN in both. */
    return db__bits_to_float(sign | (exponent == 31 ? 0xFFu : exponent + 112) << 23 |
                             fraction << 13);
}

/* m / 2^shift, to nearest, ties to even; 0 < shift < 32, m < 2^31. */
static uint32_t db__shift_to_even(uint32_t m, uint32_t shift)
{
    return (m + (((uint32_t)1 << (shift - 1)) - 1) + (m >> shift & 1)) >> shift;
}

static uint16_t db__f32_to_f16(float f)
{
    uint32_t bits = db__float_bits(f), sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u)                                     /* a NaN stays one, quiet  */
        return (uint16_t)(sign | 0x7E00u | (size >> 13 & 0x3FFu));
    if (size >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and up: infinity  */
    if (size >= 0x38800000u)                                    /* 2^-14 and up: normal    */
        return (uint16_t)(sign | db__shift_to_even(size - 0x38000000u, 13));
    if (size < 0x33000000u) return (uint16_t)sign;              /* below 2^-25: zero       */
    return (uint16_t)(sign | db__shift_to_even((size & 0x7FFFFFu) | 0x800000u, 126 - (size >> 23)));
}

static float db__bf16_to_f32(uint16_t h) { return db__bits_to_float((uint32_t)h << 16); }

static uint16_t db__f32_to_bf16(float f)
{
    uint32_t bits = db__float_bits(f);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u); /* quiet NaN */
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static const struct {
    const char *name;
    size_t bytes;
} db__dtypes[] = {
#define DB__ROW(name, bytes) {#name, bytes},
    DB_DTYPES(DB__ROW)
#undef DB__ROW
};

const char *db_dtype_name(db_dtype dtype)
{
    return (unsigned)dtype < DB_DTYPE_COUNT ? db__dtypes[dtype].name : "?";
}

size_t db_dtype_size(db_dtype dtype)
{
    return (unsigned)dtype < DB_DTYPE_COUNT ? db__dtypes[dtype].bytes : 0;
}

/* ---- random numbers --------------------------------------------------------------------------
   Philox4x32-10 (Salmon et al., 2011): a keyed bijection of a 128-bit counter. Nothing is carried
   from call to call; number i of (seed, purpose, step) is a pure function of those four.        */

static void db__philox(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t block,
                       uint32_t out[4])
{
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = step, c3 = purpose;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    int round;
    for (round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

uint32_t db_random_bits(const db_rng *rng, uint64_t index)
{
    uint32_t r[4];
    db__philox(rng->seed, rng->purpose, rng->step, index / 4, r);
    return r[index % 4];
}

float db_random_uniform(const db_rng *rng, uint64_t index)
{
    return (float)(db_random_bits(rng, index) >> 8) * (1.0f / 16777216.0f);
}

uint32_t db_random_below(const db_rng *rng, uint64_t index, uint32_t n)
{
    return (uint32_t)(((uint64_t)db_random_bits(rng, index) * n) >> 32);
}

/* n standard normal numbers, elements [first, first+n) of the stream; first is a multiple of 4.
   Box and Muller's method on pairs; double precision: two libms seldom give different floats. */
static void db__fill_normal(const db_rng *rng, uint64_t first, size_t n, float *out)
{
    size_t i;
    for (i = 0; i < n; i += 4) {
        uint32_t r[4];
        float z[4];
        int j;
        db__philox(rng->seed, rng->purpose, rng->step, (first + i) / 4, r);
        for (j = 0; j < 4; j += 2) {
            double radius = sqrt(-2.0 * log(((double)r[j] + 1.0) * (1.0 / 4294967296.0)));
            double angle = (double)r[j + 1] * (6.283185307179586 / 4294967296.0);
            z[j] = (float)(radius * cos(angle));
            z[j + 1] = (float)(radius * sin(angle));
        }
        memcpy(out + i, z, DB__MIN(n - i, 4) * sizeof *z);
    }
}

void db_random_normal(const db_rng *rng, size_t n, float *out) { db__fill_normal(rng, 0, n, out); }

/* ---- context --------------------------------------------------------------------------------- */

/* Large blocks ask for large pages: fewer misses of the address cache, some 5 % of a training step
   (measured). */
static void *db__default_allocate(void *user, size_t bytes)
{
    char *memory = (char *)malloc(bytes);
    (void)user;
#ifdef MADV_HUGEPAGE
    if (memory && bytes >= (size_t)8 << 20) {
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
                  first = ((uintptr_t)memory + page - 1) / page * page;
        madvise((void *)first, bytes - (first - (uintptr_t)memory), MADV_HUGEPAGE);
    }
#endif
    return memory;
}

static void db__default_release(void *user, void *memory)
{
    (void)user;
    free(memory);
}

db_config db_config_default(void)
{
    db_config c;
    memset(&c, 0, sizeof c);
    c.allocate = db__default_allocate;
    c.release = db__default_release;
    c.compute = DB_F32;
    return c;
}

/* How many threads a parallel loop of this context runs on. */
static int db__threads(const db_ctx *ctx) { return ctx->config.threads; }

static db_result db__choose_isa(db_ctx *ctx); /* [DB-03b] */

db_result db_create(db_ctx **out, const db_config *config)
{
    db_config c = config ? *config : db_config_default();
    db_ctx *ctx;
    *out = NULL;
    if (!c.allocate || !c.release || (c.compute != DB_F32 && c.compute != DB_BF16))
        return DB_ERROR_ARGUMENT;
    ctx = (db_ctx *)c.allocate(c.user, sizeof *ctx);
    if (!ctx) return DB_ERROR_MEMORY;
    memset(ctx, 0, sizeof *ctx);
    ctx->config = c;
#ifdef _OPENMP /* once: kernels' memory is planned by it */
    if (c.threads <= 0) ctx->config.threads = omp_get_max_threads();
#else
    ctx->config.threads = 1;
#endif
    ctx->backend = c.backend ? c.backend : db_backend_cpu();
    if (db__choose_isa(ctx) != DB_OK) {
        db_result r = ctx->result;
        db_destroy(ctx);
        return r;
    }
    *out = ctx;
    return DB_OK;
}

void db_destroy(db_ctx *ctx)
{
    if (ctx) ctx->config.release(ctx->config.user, ctx);
}

size_t db_peak_bytes(const db_ctx *ctx) { return ctx->peak_bytes; }

/* ==== [DB-02] Tensors, the tape, the backend table ===============================================

   A network is written once, as a forward function. Each operation it calls is not carried out but
   recorded on a tape. Three things are then done with the recording:

     db_backward  walks it from the end and records the operations of the gradient after it; what
                  is cheap to compute a second time (norms, activations, gates) it records again
                  where it is first read, so that it need not be kept from the forward pass,
     db_plan      finds when each value is first and last used and lays all of them out in one
                  arena, and between them what each operation's kernels need for themselves, so
                  that the memory needed is known before anything runs,
     db_run       carries the operations out, in order, through the backend table; as often as
                  there are steps.

   The tape of micrograd keeps closures and the tape of PyTorch is rebuilt at every step; this one
   is recorded once per shape, so a training step costs no bookkeeping and a GPU can replay it.

   Easy to get wrong
   - A gradient may arrive from several uses. The first writes, the later ones add: that is known
     while recording, so no buffer is cleared in between. Parameter gradients always add, which is
     what gradient accumulation over several runs needs.
   - With a residual y = x + f(x), the gradient of y *becomes* that of x without a copy, which is
     safe only because everything that reads the gradient of y has been recorded before.
   - An elementwise operation may write over its input only where nothing reads that later, which
     the plan knows and whoever records cannot.                                                  */

typedef enum db__kind {
    DB__ACTIVATION, /* lives in the arena from its first to its last use    */
    DB__KEPT,       /* lives in the arena throughout: inputs and outputs    */
    DB__PARAM,      /* a parameter: memory of a db_param_table              */
    DB__PARAM_GRAD  /* the gradient of one                                  */
} db__kind;

typedef struct db__value {
    db__kind kind;
    db_dtype dtype;
    size_t bytes;
    db_param_table *table; /* of a parameter: whose, and which one       */
    size_t param;
    int needs_grad;
    int grad;        /* value that holds the gradient, -1: none yet      */
    int placed;      /* has a place of its own, to be given back         */
    int first, last; /* nodes that write it first and use it last        */
    size_t offset;   /* in the arena                                     */
} db__value;

typedef struct db__node {
    db_op op;
    db_tensor arg[DB_MAX_ARGS];
    size_t s[6];
    int i[4];
    float f[2];
    int segment;    /* gradient checkpointing: recompute this node within that segment, -1: keep */
    size_t scratch; /* its kernels' memory while it runs: an offset in the arena */
} db__node;

struct db_tape {
    db_ctx *ctx;
    db_dtype compute; /* of activations */
    db__node *node;
    size_t n_nodes, cap_nodes;
    db__value *value;
    size_t n_values, cap_values;
    int checkpoint_blocks;   /* networks bracket their blocks by db_checkpoint_begin and _end */
    int n_segments, segment; /* checkpointed segments so far; the open one or -1 */
    size_t n_forward;        /* nodes that the caller recorded; the rest is db_backward's */
    char *arena;             /* on the backend's device */
    size_t arena_bytes;
    int planned;
    void *recording; /* of the backend's begin_run */
};

/* Tables with a row for each operation, at the end of [DB-03c]. */
static int db__op_outputs(db_op op);
static const char *db__op_name(db_op op);
static void db__op_backward(db_tape *t, const db__node *node);
static double db__op_flops(db_op op, const db_call *c);

const db_tensor db_none = {-1, 0, {0, 0, 0, 0}};

size_t db_count(db_tensor x)
{
    size_t n = 1;
    int d;
    for (d = 0; d < x.n_dims; d++) n *= x.dim[d];
    return n;
}

/* "[2, 8, 8, 16]" for messages, in the caller's buffer. */
static const char *db__shape(db_tensor x, char buffer[96])
{
    int n = 0, d;
    n += snprintf(buffer, 96, "[");
    for (d = 0; d < x.n_dims; d++)
        n += snprintf(buffer + n, 96 - (size_t)n, "%s%zu", d ? ", " : "", x.dim[d]);
    snprintf(buffer + n, 96 - (size_t)n, "]");
    return buffer;
}

static db_tensor db__shape_fail(db_tape *t, const char *what, db_tensor a, db_tensor b)
{
    char sa[96], sb[96];
    db__fail(t->ctx, DB_ERROR_SHAPE, "%s: %s does not fit %s", what, db__shape(a, sa),
             db__shape(b, sb));
    return db_none;
}

db_result db_tape_create(db_ctx *ctx, db_tape **out)
{
    db_tape *t;
    *out = NULL;
    if (ctx->result != DB_OK || !(t = (db_tape *)db__alloc(ctx, 1, sizeof *t))) return ctx->result;
    *out = t;
    t->ctx = ctx;
    t->compute = ctx->config.compute;
    t->segment = -1;
    return DB_OK;
}

void db_tape_destroy(db_tape *t)
{
    if (!t) return;
    if (t->recording) t->ctx->backend->forget(t->ctx, t->recording);
    if (t->arena) t->ctx->backend->release(t->ctx, t->arena);
    db__free(t->ctx, t->node);
    db__free(t->ctx, t->value);
    db__free(t->ctx, t);
}

/* Whether the context is well and a tape computes in that type. */
static int db__computed(db_tape *t, db_dtype dtype)
{
    if (dtype != DB_F32 && dtype != DB_BF16)
        db__fail(t->ctx, DB_ERROR_ARGUMENT, "values are computed as F32 or BF16, not as %s",
                 db_dtype_name(dtype));
    return t->ctx->result == DB_OK;
}

/* Whether the tape still takes something; else a failure. */
static int db__open(db_tape *t)
{
    if (t->planned)
        db__fail(t->ctx, DB_ERROR_ARGUMENT, "the tape is planned: nothing can be added to it");
    return t->ctx->result == DB_OK;
}

/* Whether x, which an operation cannot do without, is there; else a failure. */
static int db__given(db_tape *t, db_tensor x)
{
    if (x.id < 0) db__fail(t->ctx, DB_ERROR_ARGUMENT, "an operand is none that may not be");
    return t->ctx->result == DB_OK;
}

/* For shapes that callers name; those of operations follow from them. */
static int db__rank_fits(db_tape *t, int n_dims)
{
    if (n_dims >= 1 && n_dims <= 4) return 1;
    db__fail(t->ctx, DB_ERROR_SHAPE, "a tensor has 1 to 4 dimensions, not %d", n_dims);
    return 0;
}

static db_tensor db__new_value(db_tape *t, db__kind kind, db_dtype dtype, int n_dims,
                               const size_t *dim)
{
    db_tensor x;
    db__value *v;
    void *grown;
    int d, overflow = 0;
    size_t bytes = db_dtype_size(dtype);
    x = db_none;
    if (t->ctx->result != DB_OK) return x;
    for (d = 0; d < n_dims; d++) {
        x.dim[d] = dim[d];
        bytes = db__mul(bytes, dim[d], &overflow);
    }
    x.n_dims = n_dims;
    if (overflow || bytes == 0 || bytes > SIZE_MAX / 2) {
        char s[96];
        db__fail(t->ctx, DB_ERROR_SHAPE, "a tensor of shape %s is empty or too large",
                 db__shape(x, s));
        return db_none;
    }
    grown = db__grow(t->ctx, t->value, &t->cap_values, t->n_values + 1, sizeof *t->value);
    if (!grown) return db_none;
    t->value = (db__value *)grown;
    v = &t->value[t->n_values];
    memset(v, 0, sizeof *v);
    v->kind = kind;
    v->dtype = dtype;
    v->bytes = bytes;
    v->grad = v->first = -1;
    x.id = (int)t->n_values++;
    return x;
}

static db_tensor db__activation(db_tape *t, int n_dims, const size_t *dim)
{
    return db__new_value(t, DB__ACTIVATION, t->compute, n_dims, dim);
}

db_tensor db_input(db_tape *t, db_dtype dtype, int n_dims, const size_t *dim)
{
    if (!db__rank_fits(t, n_dims) || !db__open(t)) return db_none;
    return db__new_value(t, DB__KEPT, dtype, n_dims, dim);
}

/* A tensor handle carries its shape, so a reshape is another handle on the same value. */
db_tensor db_reshape(db_tape *t, db_tensor x, int n_dims, const size_t *dim)
{
    db_tensor y = x;
    int d;
    if (!db__rank_fits(t, n_dims)) return db_none;
    y.n_dims = n_dims;
    for (d = 0; d < 4; d++) y.dim[d] = d < n_dims ? dim[d] : 0;
    if (x.id >= 0 && db_count(x) != db_count(y)) return db__shape_fail(t, "reshape", x, y);
    return y;
}

static db_tensor db__shape2(db_tape *t, db_tensor x, size_t a, size_t b)
{
    size_t dim[2];
    dim[0] = a, dim[1] = b;
    return db_reshape(t, x, 2, dim);
}

static db_tensor db__shape3(db_tape *t, db_tensor x, size_t a, size_t b, size_t c)
{
    size_t dim[3];
    dim[0] = a, dim[1] = b, dim[2] = c;
    return db_reshape(t, x, 3, dim);
}

static db_tensor db__shape4(db_tape *t, db_tensor x, size_t a, size_t b, size_t c, size_t d)
{
    size_t dim[4];
    dim[0] = a, dim[1] = b, dim[2] = c, dim[3] = d;
    return db_reshape(t, x, 4, dim);
}

void db_keep(db_tape *t, db_tensor x)
{
    if (x.id < 0 || t->value[x.id].kind != DB__ACTIVATION || !db__open(t)) return;
    t->value[x.id].kind = DB__KEPT;
}

void db_require_grad(db_tape *t, db_tensor x)
{
    if (x.id >= 0) t->value[x.id].needs_grad = 1;
}

/* Which arguments of an operation, as bits, have to be of the type of its first, the output ... */
static unsigned db__alike(db_op op)
{
    switch (op) {
    case DB_OP_CONV2D: return 1u << 1 | 1u << 4;
    case DB_OP_ATTENTION: return 1u << 2 | 1u << 3 | 1u << 4;
    case DB_OP_GROUP_NORM: return 1u << 2 | 1u << 5;
    case DB_OP_LAYER_NORM: return 1u << 2;
    case DB_OP_MUL: case DB_OP_AXPBY: case DB_OP_ADD_EACH: return 1u << 1 | 1u << 2;
    case DB_OP_ACT: case DB_OP_GATE: case DB_OP_ADD_ROWS: case DB_OP_MEAN: case DB_OP_POOL2:
    case DB_OP_UP2: case DB_OP_MAX_POOL: return 1u << 1;
    default: return 0;
    }
}

/* ... and which in f32: weights, what is added to attention's scores, numbers for each sample. */
static unsigned db__in_f32(db_op op)
{
    switch (op) {
    case DB_OP_CONV2D: return 1u << 2 | 1u << 3;
    case DB_OP_GROUP_NORM: case DB_OP_LAYER_NORM: return 1u << 3 | 1u << 4;
    case DB_OP_ATTENTION: return 1u << 5 | 1u << 6;
    case DB_OP_EMBEDDING: case DB_OP_ADD_ROWS: return 1u << 2;
    case DB_OP_SINUSOID: case DB_OP_POSITION_BIAS: return 1u << 1;
    case DB_OP_MIX: return 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4;
    case DB_OP_MSE: return 1u << 3 | 1u << 4 | 1u << 5;
    case DB_OP_CROSS_ENTROPY: case DB_OP_CROSS_ENTROPY_DX: return 1u << 3;
    default: return 0;
    }
}

/* Whether argument k has a type that the operation takes; numbers are f32 or bf16, ids i32. */
static int db__type_fits(const db_tape *t, db_op op, int k, const db_tensor *arg, db_dtype *wanted)
{
    db_dtype type = t->value[arg[k].id].dtype;
    int ids = (op == DB_OP_EMBEDDING || op == DB_OP_EMBEDDING_DW) && k == 1,
        ids_or_shares = (op == DB_OP_CROSS_ENTROPY || op == DB_OP_CROSS_ENTROPY_DX) && k == 3;
    *wanted = DB_F32;
    if (ids) *wanted = DB_I32;
    else if (db__alike(op) >> k & 1) *wanted = t->value[arg[0].id].dtype;
    else if (type == DB_BF16 && !(db__in_f32(op) >> k & 1)) *wanted = DB_BF16;
    return type == *wanted || (ids_or_shares && type == DB_I32);
}

/* Appends a node; NULL once the context has failed. Arguments come as a list that ends at n. */
static db__node *db__record(db_tape *t, db_op op, int n, const db_tensor *arg)
{
    db__node *node;
    void *grown;
    int k;
    if (!db__open(t)) return NULL;
    for (k = 1; k < n; k++) {
        db_dtype wanted;
        if (arg[k].id < 0 || db__type_fits(t, op, k, arg, &wanted)) continue;
        db__fail(t->ctx, DB_ERROR_ARGUMENT, "%s: an argument is %s where %s is taken: db_cast it",
                 db__op_name(op), db_dtype_name(t->value[arg[k].id].dtype), db_dtype_name(wanted));
        return NULL;
    }
    grown = db__grow(t->ctx, t->node, &t->cap_nodes, t->n_nodes + 1, sizeof *t->node);
    if (!grown) return NULL;
    t->node = (db__node *)grown;
    node = &t->node[t->n_nodes++];
    memset(node, 0, sizeof *node);
    node->op = op;
    node->segment = t->segment;
    for (k = 0; k < DB_MAX_ARGS; k++) node->arg[k] = k < n ? arg[k] : db_none;
    return node;
}

/* Appends a node like `like`; NULL once the context has failed. */
static db__node *db__record_like(db_tape *t, const db__node *like)
{
    db__node *node = db__record(t, like->op, DB_MAX_ARGS, like->arg);
    if (!node) return NULL;
    memcpy(node->s, like->s, sizeof node->s);
    memcpy(node->i, like->i, sizeof node->i);
    memcpy(node->f, like->f, sizeof node->f);
    return node;
}

static int db__needs_grad(const db_tape *t, db_tensor x)
{
    return x.id >= 0 && t->value[x.id].needs_grad;
}

/* Marks y as needing a gradient if any of the n inputs does. */
static void db__inherit_grad(db_tape *t, db_tensor y, int n, const db_tensor *input)
{
    int k;
    for (k = 0; k < n; k++)
        if (db__needs_grad(t, input[k])) t->value[y.id].needs_grad = 1;
}

/* ---- gradients ------------------------------------------------------------------------------- */

/* The gradient of x as a place to write. *add says whether something is there to be added to. */
static db_tensor db__grad_target(db_tape *t, db_tensor x, int *add)
{
    db_tensor g = x;
    db__value *v;
    if (x.id < 0 || t->ctx->result != DB_OK) return db_none;
    v = &t->value[x.id];
    *add = v->grad >= 0 || v->kind == DB__PARAM;
    if (v->grad < 0) {
        int is_param = v->kind == DB__PARAM;
        db_param_table *table = v->table;
        size_t param = v->param;
        g = db__new_value(t, is_param ? DB__PARAM_GRAD : DB__ACTIVATION, v->dtype, x.n_dims, x.dim);
        if (g.id < 0) return g;
        t->value[x.id].grad = g.id;
        t->value[g.id].table = table;
        t->value[g.id].param = param;
        return g;
    }
    g.id = v->grad;
    return g;
}

/* The same for kernels that always add, as those of weights do. */
static db_tensor db__sum_target(db_tape *t, db_tensor x)
{
    int add = 0;
    db_tensor g = db__grad_target(t, x, &add);
    if (g.id >= 0 && !add) db__record(t, DB_OP_FILL, 1, &g);
    return g;
}

db_tensor db_grad(const db_tape *t, db_tensor x)
{
    db_tensor g = x;
    g.id = x.id < 0 ? -1 : t->value[x.id].grad;
    return g;
}

/* Gives x the gradient g: hands the buffer over if x has none yet, adds otherwise. To be called
   last in a node's backward, when nothing else will read g. */
static void db__grad_pass(db_tape *t, db_tensor x, db_tensor g)
{
    db_tensor arg[3];
    db__node *n;
    if (!db__needs_grad(t, x) || g.id < 0) return;
    if (t->value[x.id].grad < 0 && t->value[x.id].kind != DB__PARAM &&
        t->value[x.id].dtype == t->value[g.id].dtype) {
        t->value[x.id].grad = g.id;
        return;
    }
    arg[1] = g, arg[2] = db_none;
    {
        int add = 0;
        arg[0] = db__grad_target(t, x, &add);
        n = db__record(t, DB_OP_AXPBY, 3, arg);
        if (n) n->f[0] = 1.0f, n->i[0] = add;
    }
}

/* Copies the nodes [from, to) with new outputs, so that the originals can be dropped after the
   forward pass; returns the first copy. The copies inherit the gradients that have arrived. */
static size_t db__recompute(db_tape *t, size_t from, size_t to)
{
    size_t first = t->n_nodes, n, k;
    int *renamed = (int *)db__alloc(t->ctx, t->n_values, sizeof *renamed);
    if (!renamed) return first;
    for (n = 0; n < t->n_values; n++) renamed[n] = (int)n;
    for (n = from; n < to; n++) {
        db__node copy = t->node[n];
        int outputs = db__op_outputs(copy.op);
        for (k = 0; k < DB_MAX_ARGS; k++) {
            int id = copy.arg[k].id;
            if (id < 0) continue;
            if ((int)k < outputs && renamed[id] == id) { /* several nodes may write one value */
                db__value old = t->value[id];
                db_tensor fresh = db__new_value(t, DB__ACTIVATION, old.dtype, copy.arg[k].n_dims,
                                                copy.arg[k].dim);
                if (fresh.id < 0) break;
                t->value[fresh.id].bytes = old.bytes;
                t->value[fresh.id].needs_grad = old.needs_grad;
                t->value[fresh.id].grad = old.grad;
                renamed[id] = fresh.id;
            }
            copy.arg[k].id = renamed[id];
        }
        if (!db__record_like(t, &copy)) break;
    }
    db__free(t->ctx, renamed);
    return first;
}

void db_checkpoint_begin(db_tape *t) { t->segment = t->n_segments++; }
void db_checkpoint_end(db_tape *t) { t->segment = -1; }

/* The norms, activations and gates: outputs that cost little to compute again, from an input that
   their own backward reads and that is kept for it anyway. */
static int db__cheap(db_op op)
{
    return op == DB_OP_GROUP_NORM || op == DB_OP_LAYER_NORM || op == DB_OP_ACT || op == DB_OP_GATE;
}

/* The value that the backward pass reads in place of `id`: a copy of the cheap operation that made
   it is recorded when it is first asked for. producer [values]: that operation's node, again
   [values]: the copy's output; or -1. */
static int db__again(db_tape *t, const int *producer, int *again, int id)
{
    db__node copy;
    int k;
    if (id < 0 || producer[id] < 0) return id;
    if (again[id] >= 0) return again[id];
    copy = t->node[producer[id]];
    copy.arg[0] = db__new_value(t, DB__ACTIVATION, t->value[id].dtype, copy.arg[0].n_dims,
                                copy.arg[0].dim);
    for (k = db__op_outputs(copy.op); k < DB_MAX_ARGS; k++)
        copy.arg[k].id = db__again(t, producer, again, copy.arg[k].id);
    if (copy.op == DB_OP_GROUP_NORM) copy.i[1] = 1; /* half the work: the statistics are kept */
    db__record_like(t, &copy);
    return again[id] = copy.arg[0].id;
}

/* Rewrites the backward pass so that it computes the cheap outputs again where it first reads them:
   half a ResNet block's activations need not outlive the forward pass. */
static void db__forget_cheap(db_tape *t)
{
    size_t n, n_backward = t->n_nodes - t->n_forward, n_values = t->n_values;
    db__node *backward = (db__node *)db__alloc(t->ctx, n_backward, sizeof *backward);
    int *producer = (int *)db__alloc(t->ctx, n_values, sizeof *producer);
    int *again = (int *)db__alloc(t->ctx, n_values, sizeof *again);
    int k;
    if (!backward || !producer || !again) goto done;
    memcpy(backward, t->node + t->n_forward, n_backward * sizeof *backward);
    memset(producer, -1, n_values * sizeof *producer);
    memset(again, -1, n_values * sizeof *again);
    for (n = 0; n < t->n_forward; n++) {
        const db__node *node = &t->node[n];
        const db__value *out = &t->value[node->arg[0].id];
        if (node->segment < 0 && db__cheap(node->op) && out->needs_grad &&
            out->kind == DB__ACTIVATION)
            producer[node->arg[0].id] = (int)n;
    }
    t->n_nodes = t->n_forward;
    for (n = 0; n < n_backward; n++) {
        for (k = db__op_outputs(backward[n].op); k < DB_MAX_ARGS; k++)
            backward[n].arg[k].id = db__again(t, producer, again, backward[n].arg[k].id);
        db__record_like(t, &backward[n]);
    }
done:
    db__free(t->ctx, backward);
    db__free(t->ctx, producer);
    db__free(t->ctx, again);
}

db_result db_backward(db_tape *t, db_tensor loss)
{
    int add = 0;
    size_t n;
    db_tensor seed;
    db__node *fill;
    if (!db__given(t, loss)) return t->ctx->result;
    if (t->n_forward)
        return db__fail(t->ctx, DB_ERROR_ARGUMENT, "a tape has one db_backward: add the losses up");
    seed = db__grad_target(t, loss, &add);
    fill = db__record(t, DB_OP_FILL, 1, &seed);
    if (!fill) return t->ctx->result;
    fill->f[0] = 1.0f;
    t->n_forward = t->n_nodes - 1;
    for (n = t->n_forward; n-- > 0 && t->ctx->result == DB_OK;) {
        int segment = t->node[n].segment;
        if (segment < 0) {
            db__node node = t->node[n]; /* by value: recording may move the array */
            db__op_backward(t, &node);
        } else {
            size_t from = n, copy, k;
            while (from > 0 && t->node[from - 1].segment == segment) from--;
            copy = db__recompute(t, from, n + 1);
            for (k = n + 1 - from; k-- > 0 && t->ctx->result == DB_OK;) {
                db__node node = t->node[copy + k];
                db__op_backward(t, &node);
            }
            n = from;
        }
    }
    if (t->ctx->result == DB_OK) db__forget_cheap(t);
    for (n = 0; n < t->n_values; n++) /* what db_require_grad asked for can be downloaded */
        if (t->value[n].kind == DB__KEPT && t->value[n].needs_grad && t->value[n].grad >= 0 &&
            t->value[t->value[n].grad].kind == DB__ACTIVATION)
            t->value[t->value[n].grad].kind = DB__KEPT;
    return t->ctx->result;
}

/* ---- the memory plan ------------------------------------------------------------------------- */

typedef struct db__hole {
    size_t offset, bytes;
} db__hole;

/* Best fit: the smallest hole that holds the bytes; else the end of the arena, from the hole there
   on, if there is one. */
static size_t db__place(db__hole *hole, size_t *n_holes, size_t bytes, size_t *end)
{
    size_t k, best = *n_holes, last = *n_holes, at;
    for (k = 0; k < *n_holes; k++) {
        if (hole[k].bytes >= bytes && (best == *n_holes || hole[k].bytes < hole[best].bytes))
            best = k;
        if (hole[k].offset + hole[k].bytes == *end) last = k;
    }
    if (best == *n_holes) {
        if (last == *n_holes) {
            at = *end;
            *end = db__sum(at, bytes);
            return at;
        }
        best = last;
        *end = db__sum(hole[last].offset, bytes);
        hole[last].bytes = bytes;
    }
    at = hole[best].offset;
    hole[best].offset += bytes;
    hole[best].bytes -= bytes;
    if (!hole[best].bytes) hole[best] = hole[--*n_holes];
    return at;
}

/* Returns a block to the holes and joins it with its neighbours. */
static void db__unplace(db__hole *hole, size_t *n_holes, size_t offset, size_t bytes)
{
    size_t k;
    for (k = 0; k < *n_holes;) {
        if (hole[k].offset + hole[k].bytes == offset || offset + bytes == hole[k].offset) {
            offset = DB__MIN(offset, hole[k].offset);
            bytes += hole[k].bytes;
            hole[k] = hole[--*n_holes];
            k = 0;
        } else {
            k++;
        }
    }
    hole[*n_holes].offset = offset;
    hole[(*n_holes)++].bytes = bytes;
}

/* Elementwise operations may write over an input that is read no more: which arguments, as bits. */
static unsigned db__in_place(db_op op)
{
    switch (op) {
    case DB_OP_ACT: return 1u << 1;
    case DB_OP_ACT_DX: return 1u << 1 | 1u << 2;
    case DB_OP_GATE_DX: return 1u << 2;
    default: return 0;
    }
}

/* The pointers, shapes, attributes and scratch of node n, as a backend takes them. */
static db_call db__call(const db_tape *t, size_t n)
{
    const db__node *node = &t->node[n];
    db_call c;
    int k;
    memset(&c, 0, sizeof c);
    for (k = 0; k < DB_MAX_ARGS; k++) {
        const db__value *v;
        if (node->arg[k].id < 0) continue;
        v = &t->value[node->arg[k].id];
        c.a[k].dtype = v->dtype;
        c.a[k].n_dims = node->arg[k].n_dims;
        memcpy(c.a[k].dim, node->arg[k].dim, sizeof c.a[k].dim);
        if (v->kind == DB__PARAM) c.a[k].data = v->table->item[v->param].data;
        else if (v->kind == DB__PARAM_GRAD) c.a[k].data = v->table->item[v->param].grad;
        else c.a[k].data = t->arena ? t->arena + v->offset : NULL;
        c.a[k].present = 1;
    }
    memcpy(c.s, node->s, sizeof c.s);
    memcpy(c.i, node->i, sizeof c.i);
    memcpy(c.f, node->f, sizeof node->f);
    c.scratch = t->arena ? t->arena + node->scratch : NULL;
    return c;
}

/* The value whose place the first output of node n takes, or -1. */
static int db__written_over(const db_tape *t, size_t n)
{
    const db__node *node = &t->node[n];
    int k;
    for (k = 1; k < DB_MAX_ARGS; k++) {
        const db__value *v;
        if (node->arg[k].id < 0) continue;
        v = &t->value[node->arg[k].id];
        if (db__in_place(node->op) >> k & 1 && v->kind == DB__ACTIVATION && v->last == (int)n &&
            v->bytes == t->value[node->arg[0].id].bytes)
            return node->arg[k].id;
    }
    return -1;
}

/* Lays the values out, and what memory each operation's kernels need of their own while it runs. */
static db_result db__lay_out(db_tape *t)
{
    db_ctx *ctx = t->ctx;
    size_t n, k, n_holes = 0, end = 0;
    db__hole *hole = (db__hole *)db__alloc(ctx, t->n_values + 1, sizeof *hole);
    int *dying = (int *)db__alloc(ctx, t->n_values + 1, sizeof *dying);
    int *head = (int *)db__alloc(ctx, t->n_nodes + 1, sizeof *head);
    if (!hole || !dying || !head) goto done;
    for (n = 0; n < t->n_nodes; n++) head[n] = -1;
    for (n = 0; n < t->n_nodes; n++)
        for (k = 0; k < DB_MAX_ARGS; k++) {
            db__value *v;
            if (t->node[n].arg[k].id < 0) continue;
            v = &t->value[t->node[n].arg[k].id];
            if (v->first < 0) v->first = (int)n;
            v->last = (int)n;
        }
    for (k = 0; k < t->n_values; k++) { /* a linked list of the values that each node uses last */
        db__value *v = &t->value[k];
        v->bytes = DB__ROUND_UP(v->bytes, DB__ALIGN);
        if (v->kind == DB__KEPT) v->offset = end, end = db__sum(end, v->bytes);
        if (v->kind != DB__ACTIVATION || v->first < 0) continue;
        dying[k] = head[v->last];
        head[v->last] = (int)k;
    }
    for (n = 0; n < t->n_nodes; n++) {
        int d, over;
        for (k = 0; k < DB_MAX_ARGS; k++) {
            int id = t->node[n].arg[k].id;
            if (id < 0 || t->value[id].kind != DB__ACTIVATION || t->value[id].first != (int)n)
                continue;
            if (t->value[id].placed) continue; /* by an earlier argument of this node */
            over = k ? -1 : db__written_over(t, n);
            t->value[id].offset = over >= 0 ? t->value[over].offset
                : db__place(hole, &n_holes, t->value[id].bytes, &end);
            t->value[id].placed = 1;
            if (over >= 0) t->value[over].placed = 0; /* its place is taken, not to be given back */
        }
        {
            db_call c = db__call(t, n);
            c.measuring = 1;
            if (ctx->backend->run[t->node[n].op]) ctx->backend->run[t->node[n].op](ctx, &c);
            c.scratch_used = DB__ROUND_UP(c.scratch_used, DB__ALIGN);
            if (c.scratch_used) {
                t->node[n].scratch = db__place(hole, &n_holes, c.scratch_used, &end);
                db__unplace(hole, &n_holes, t->node[n].scratch, c.scratch_used);
            }
        }
        for (d = head[n]; d >= 0; d = dying[d])
            if (t->value[d].placed)
                db__unplace(hole, &n_holes, t->value[d].offset, t->value[d].bytes);
    }
    t->arena_bytes = end;
done:
    db__free(ctx, hole);
    db__free(ctx, dying);
    db__free(ctx, head);
    return ctx->result;
}

db_result db_plan(db_tape *t, db_memory_plan *plan)
{
    db_ctx *ctx = t->ctx;
    size_t n;
    if (ctx->result != DB_OK) return ctx->result;
    if (!t->planned) {
        if (db__lay_out(t) != DB_OK) return ctx->result;
        t->planned = 1;
    }
    if (plan) {
        memset(plan, 0, sizeof *plan);
        plan->arena_bytes = t->arena_bytes;
        plan->n_operations = t->n_nodes;
        for (n = 0; n < t->n_nodes; n++) {
            db_call c = db__call(t, n);
            plan->flops += db__op_flops(t->node[n].op, &c);
        }
    }
    return DB_OK;
}

static db_result db__ensure_arena(db_tape *t)
{
    if (t->arena || t->ctx->result != DB_OK) return t->ctx->result;
    if (db_plan(t, NULL) != DB_OK) return t->ctx->result;
    if (t->arena_bytes < SIZE_MAX - DB__ALIGN)
        t->arena = (char *)t->ctx->backend->alloc(t->ctx, t->arena_bytes + DB__ALIGN);
    if (!t->arena)
        return db__fail(t->ctx, DB_ERROR_MEMORY,
                        "out of memory: the network's activations need %.1f MB; use a smaller "
                        "batch or resolution, or gradient checkpointing",
                        (double)t->arena_bytes / 1e6);
    return DB_OK;
}

/* Whether x has a place of its own throughout; else a failure. */
static int db__within_reach(db_tape *t, db_tensor x, const char *what)
{
    if (t->ctx->result == DB_OK && (x.id < 0 || t->value[x.id].kind != DB__KEPT))
        db__fail(t->ctx, DB_ERROR_ARGUMENT,
                 x.id < 0 ? "%s of a value that there is not"
                          : "%s of a value that was not kept: db_keep it before db_plan",
                 what);
    return t->ctx->result == DB_OK && db__ensure_arena(t) == DB_OK;
}

db_result db_upload(db_tape *t, db_tensor x, const void *data)
{
    if (!db__within_reach(t, x, "db_upload")) return t->ctx->result;
    return t->ctx->backend->copy_in(t->ctx, t->arena + t->value[x.id].offset, data,
                                    db_count(x) * db_dtype_size(t->value[x.id].dtype));
}

db_result db_download(db_tape *t, db_tensor x, float *out)
{
    db_ctx *ctx = t->ctx;
    size_t n = db_count(x);
    if (!db__within_reach(t, x, "db_download") || !db__computed(t, t->value[x.id].dtype))
        return ctx->result;
    if (t->value[x.id].dtype == DB_F32)
        return ctx->backend->copy_out(ctx, out, t->arena + t->value[x.id].offset, n * 4);
    {   /* bf16 is widened in place, from the end */
        size_t k;
        uint16_t half;
        db_result r = ctx->backend->copy_out(ctx, out, t->arena + t->value[x.id].offset, n * 2);
        for (k = n; k-- > 0;) {
            uint32_t bits;
            memcpy(&half, (const char *)out + 2 * k, 2);
            bits = (uint32_t)half << 16;
            memcpy(out + k, &bits, 4);
        }
        return r;
    }
}

/* Begins one operation; sync waits for it. */
static db_result db__begin(db_ctx *ctx, db_op op, db_call *c)
{
    if (!ctx->backend->run[op])
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "the backend %s has no operation %s",
                        ctx->backend->name, db__op_name(op));
    ctx->backend->run[op](ctx, c);
    return ctx->result;
}

/* All operations, in order */
static void db__run_nodes(db_tape *t, uint64_t seed, uint32_t step)
{
    db_ctx *ctx = t->ctx;
    size_t n;
    for (n = 0; n < t->n_nodes && ctx->result == DB_OK; n++) {
        db_call c = db__call(t, n);
        c.seed = seed;
        c.step = step;
        db__begin(ctx, t->node[n].op, &c);
    }
}

/* Where the parameters lie, as one number: all else that a run depends on stays as planned. */
static uint64_t db__addresses(const db_tape *t)
{
    uint64_t hash = 0xCBF29CE484222325u;
    size_t n;
    for (n = 0; n < t->n_values; n++) {
        const db__value *v = &t->value[n];
        const float *at;
        if (v->kind != DB__PARAM && v->kind != DB__PARAM_GRAD) continue;
        at = v->kind == DB__PARAM ? v->table->item[v->param].data : v->table->item[v->param].grad;
        hash = (hash ^ (uint64_t)(uintptr_t)at) * 0x100000001B3u;
    }
    return hash;
}

db_result db_run(db_tape *t, uint64_t seed, uint32_t step)
{
    db_ctx *ctx = t->ctx;
    const db_backend *b = ctx->backend;
    if (db__ensure_arena(t) != DB_OK) return ctx->result;
    if (!b->begin_run || !b->begin_run(ctx, &t->recording, db__addresses(t), seed, step)) {
        db__run_nodes(t, seed, step);
        if (b->begin_run && !b->end_run(ctx, t->recording)) db__run_nodes(t, seed, step);
    }
    return b->sync(ctx);
}

/* ==== [DB-03b] Which instruction sets there are ==================================================

   The file includes itself once for each instruction set and data type that the compiler knows; at
   run time db__choose_isa picks the best one that the processor has, or the one asked for by
   db_config.isa or the environment variable DB_ISA.

   Easy to get wrong
   - An instruction set is an attribute of its pass's functions, not a flag of the compiler: all
     else in the file has to run where the set is missing.
   - A processor with AMX is not enough: on Linux a process asks for its tiles.                  */

/* C = start + A B of [DB-03a]: m x k by k x (16 panels), summed over taps, for which A and B begin
   elsewhere: a convolution's kernel rows, and in the gradient of weights lines of pixels
   (db__dw_floats) or regions (db__dw_pairs). */
typedef struct db__gemm {
    size_t m, k, taps, panels;
    const void *a;   /* rows of k numbers                                       */
    size_t lda, a_k; /* from row to row, from k to k                            */
    size_t a_tap;    /* from tap to tap                                         */
    const void *b;   /* panels of 16 columns                                    */
    size_t b_panel;  /* from panel to panel                                     */
    size_t b_k;      /* from k to k: 16 where packed, and always on the tile unit */
    size_t b_tap;    /* from tap to tap inside a panel                          */
    float *c;        /* [m][ldc]                                                */
    size_t ldc;
    const float *start; /* [m][lds]: C itself, to add to it; a bias, lds = 0; or NULL for zeros */
    size_t lds;
} db__gemm;

/* In the order in which an operation's f holds it. */
typedef struct db__adamw_step {
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2; /* 1 - beta^step              */
    float grad_scale;               /* clipping and accumulation  */
} db__adamw_step;

typedef struct db__kernels {
    size_t k_multiple; /* K of a matrix product is padded to this */
    int pairs;         /* one instruction multiplies and adds pairs of bf16 */
    int tiles;         /* one instruction multiplies tiles of 16 x 32 by 32 x 16 of them */
    void (*gemm)(const db__gemm *g);
    size_t size; /* of one number */
    void (*pack_weight)(void *panel, const float *in, size_t k, size_t n, size_t by_k, size_t by_n,
                        size_t k_padded);
    void (*pack)(void *out, size_t out_panel, const void *in, size_t k, size_t n, size_t by_k,
                 size_t by_n, size_t k_padded);
    void (*transpose)(void *out, size_t ld_out, const void *in, size_t ld_in, size_t rows,
                      size_t columns, size_t rows_padded);
    void (*epilogue)(void *y, size_t ld, const float *c, size_t ldc, const float *bias,
                     const void *residual, size_t rows, size_t n, int add);
    void (*winograd_weight)(float *u, const float *g, size_t C); /* these five: f32 only */
    void (*winograd_weight_back)(float *dw, size_t row, const float *s, size_t n, size_t C,
                                 int add);
    void (*winograd_input)(float *v, size_t position, size_t tile, size_t panel, const float *x,
                           size_t line, size_t tiles, size_t C);
    void (*winograd_output_back)(float *m, size_t position, const float *dy, size_t line, size_t ld,
                                 size_t rows, size_t columns, size_t n);
    void (*winograd_output)(float *y, size_t line, size_t ld, size_t rows, size_t columns,
                            const float *m, size_t position, size_t n, const float *bias,
                            const float *residual, int add);
    void (*column_sums)(float *sum, const void *x, size_t n, size_t C);
    void (*norm_sums)(float *sum, float *square, const void *x0, const void *x, size_t n, size_t C);
    void (*norm_apply)(void *y, const void *x, size_t n, size_t C, const float *scale,
                       const float *shift, const float *mean, int act);
    void (*norm_back_sums)(float *g, float *sum, float *dot, const void *x, const void *dy,
                           size_t n, size_t C, const float *scale, const float *shift,
                           const float *mean, int act);
    void (*norm_back_apply)(void *dx, const void *x, const float *g, size_t n, size_t C,
                            const float *scale, const float *mean, const float *c0,
                            const float *c1, int add);
    void (*layer_norm)(void *y, float stats[2], const void *x, const float *w, const float *b,
                       size_t C, float eps, int rms);
    void (*layer_norm_back)(void *dx, float *dw, float *dbias, const void *dy, const void *x,
                            const float stats[2], const float *w, size_t C, int rms, int add);
    void (*act)(void *y, const void *x, size_t n, int act);
    void (*act_back)(void *dx, const void *dy, const void *x, size_t n, int act, int add);
    void (*gate)(void *y, const void *x, size_t C, int act);
    void (*gate_back)(void *dx, const void *dy, const void *x, size_t C, int act, int add);
    void (*mul)(void *y, const void *a, const void *b, size_t n, int add);
    void (*axpby)(void *y, const void *x, const void *z, float alpha, float beta, size_t n,
                  int add);
    void (*from_f32)(void *y, const float *x, size_t n, int add);
    void (*to_f32)(float *y, const void *x, size_t n, int add);
    void (*pool)(void *y, const void *a, const void *b, const void *c, const void *d, float scale,
                 size_t n, int add);
    float (*softmax)(void *p, float *s, const float *bias, const float *mask, size_t n,
                     size_t n_padded, float scale, float *max, float *sum);
    void (*softmax_back)(void *p, void *ds, const float *s, const float *dp, const float *bias,
                         const float *mask, float lse, float delta, size_t n, size_t n_padded,
                         float scale);
    float (*dot)(const void *a, const void *b, size_t n);
    void (*adamw)(float *w, float *m, float *v, const float *g, size_t n, const db__adamw_step *a);
} db__kernels;

#define DB__PASTE3(a, b, c) a##_##b##_##c
#define DB__PASTE(a, b, c) DB__PASTE3(a, b, c)
#if defined(__clang__)
#define DB__UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define DB__UNROLL _Pragma("GCC unroll 32")
#else
#define DB__UNROLL
#endif
#if defined(__GNUC__) || defined(__clang__)
#define DB__PREFETCH(p) __builtin_prefetch(p)
#define DB__PREFETCH_WRITE(p) __builtin_prefetch((p), 1)
#else
#define DB__PREFETCH(p) ((void)0)
#define DB__PREFETCH_WRITE(p) ((void)0)
#endif

#define DB__PASS_SCALAR
#include "dreambooth.h"
#define DB__PASS_BF16
#include "dreambooth.h"
#undef DB__PASS_BF16
#undef DB__PASS_SCALAR

#if (defined(__x86_64__) || defined(__amd64__)) && defined(__GNUC__) && !defined(DB_NO_SIMD)
#define DB__X86 1
#define DB__TARGET_AVX2 __attribute__((target("avx2,fma")))
#define DB__PASS_AVX2
#include "dreambooth.h"
#define DB__PASS_BF16
#include "dreambooth.h"
#undef DB__PASS_BF16
#undef DB__PASS_AVX2

#define DB__TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")))
#define DB__PASS_AVX512
#include "dreambooth.h"
#define DB__PASS_BF16
#include "dreambooth.h"
#undef DB__PASS_BF16
#undef DB__PASS_AVX512

#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define DB__X86_BF16 1
#define DB__TARGET_AVX512BF16 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2")))
#define DB__TARGET_AMX \
    __attribute__(( \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,amx-tile,amx-bf16")))
#define DB__PASS_BF16
#define DB__PASS_AVX512BF16
#include "dreambooth.h"
#undef DB__PASS_AVX512BF16
#define DB__PASS_AMX
#include "dreambooth.h"
#undef DB__PASS_AMX
#undef DB__PASS_BF16
#endif
#endif

#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(DB_NO_SIMD)
#define DB__NEON 1
#define DB__PASS_NEON
#include "dreambooth.h"
#define DB__PASS_BF16
#include "dreambooth.h"
#undef DB__PASS_BF16
#undef DB__PASS_NEON
#endif

/* An instruction set: its kernels for f32 and for bf16, and whether this processor runs them. */
typedef struct db__isa {
    const char *name;
    const db__kernels *f32, *bf16;
    int (*available)(void);
} db__isa;

static int db__always(void) { return 1; }

#ifdef DB__X86
static int db__has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int db__has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef DB__X86_BF16
static int db__cpuid7(unsigned sub, unsigned *a, unsigned *d)
{
    unsigned b, c;
    return __get_cpuid_count(7, sub, a, &b, &c, d);
}
static int db__has_avx512bf16(void)
{
    unsigned a = 0, d = 0;
    return db__has_avx512() && db__cpuid7(1, &a, &d) && (a >> 5 & 1);
}
/* Tiles are large, so Linux hands them only to processes that ask. */
static int db__has_amx(void)
{
#if defined(DB__POSIX) && defined(__linux__) && defined(SYS_arch_prctl)
    unsigned a = 0, d = 0;
    if (!db__has_avx512bf16() || !db__cpuid7(0, &a, &d) || !(d >> 24 & 1) || !(d >> 22 & 1))
        return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return 0;
#endif
}
#endif

static const db__isa db__isas[] = { /* best first */
#ifdef DB__X86_BF16
    {"amx", &db__k_table_avx512_f32, &db__k_table_amx_bf16, db__has_amx},
    {"avx512bf16", &db__k_table_avx512_f32, &db__k_table_avx512bf16_bf16, db__has_avx512bf16},
#endif
#ifdef DB__X86
    {"avx512", &db__k_table_avx512_f32, &db__k_table_avx512_bf16, db__has_avx512},
    {"avx2", &db__k_table_avx2_f32, &db__k_table_avx2_bf16, db__has_avx2},
#endif
#ifdef DB__NEON
    {"neon", &db__k_table_neon_f32, &db__k_table_neon_bf16, db__always},
#endif
    {"scalar", &db__k_table_scalar_f32, &db__k_table_scalar_bf16, db__always},
};
enum { DB__N_ISAS = sizeof db__isas / sizeof *db__isas };

static db_result db__choose_isa(db_ctx *ctx)
{
    const char *wanted = ctx->config.isa ? ctx->config.isa : getenv("DB_ISA");
    size_t k;
    if (wanted && !*wanted) wanted = NULL; /* DB_ISA= */
    for (k = 0; k < DB__N_ISAS; k++) {
        if (wanted && strcmp(wanted, db__isas[k].name)) continue;
        if (db__isas[k].available()) {
            ctx->isa = &db__isas[k];
            return DB_OK;
        }
    }
    return db__fail(ctx, DB_ERROR_UNSUPPORTED,
                    "this processor or build has no instruction set '%s'", wanted);
}

const char *db_isa(const db_ctx *ctx) { return ctx->isa->name; }

const char *db_isa_name(size_t k)
{
    size_t n = 0, i;
    for (i = 0; i < DB__N_ISAS; i++)
        if (db__isas[i].available() && n++ == k) return db__isas[i].name;
    return NULL;
}

static const db__kernels *db__kernels_for(const db_ctx *ctx, db_dtype dtype)
{
    return dtype == DB_BF16 ? ctx->isa->bf16 : ctx->isa->f32;
}

/* ==== [DB-03c] Operations: how each is recorded, carried out, and differentiated =================

   For every operation, side by side: the function that networks call (db_...: checks shapes,
   records), its backward (records the operations of the gradient), and the driver that the CPU
   backend runs (db__cpu_...: cuts the work into pieces and calls the kernels of [DB-03a]).

   Shapes: images [B,H,W,C], sequences [B,T,C], always with the channels innermost.

   Easy to get wrong
   - Sums are cut by shape alone, never by the number of threads, and their pieces are added in
     order: one thread or sixteen, the bits are the same. The threads decide only who computes
     which outputs (DB__EACH_SAMPLE, the split in db__conv_winograd).
   - A driver first takes its scratch memory (db__scratch), then returns if it is only being
     measured; so the memory plan and the run cannot disagree.                                  */

static void *db__scratch(db_call *c, size_t bytes)
{
    char *at = (char *)c->scratch + c->scratch_used;
    c->scratch_used += DB__ROUND_UP(bytes, DB__ALIGN);
    return c->measuring ? NULL : at;
}

static char *db__at(const db_arg *a, size_t index)
{
    return (char *)a->data + index * db_dtype_size(a->dtype);
}

static size_t db__arg_count(const db_arg *a)
{
    size_t n = a->present ? 1 : 0;
    int d;
    for (d = 0; d < a->n_dims; d++) n *= a->dim[d];
    return n;
}

static const float *db__floats(const db_arg *a) { return (const float *)a->data; }

static int db__thread_index(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* for (i = 0; i < n; i++) body, over the threads of the context. */
#define DB__PARALLEL_FOR(ctx, kind)                                                                \
    int db__nt = db__threads(ctx);                                                                 \
    (void)db__nt;                                                                                  \
    DB__OMP(omp parallel for num_threads(db__nt) schedule(kind))

/* call, for every sample b of n: side by side, or where there are fewer samples than threads one
   after the other, each sharing out its own loops. (Not by a parallel region of one thread: the
   regions inside it would begin new threads every time, 5 ms each.) */
#define DB__EACH_SAMPLE(ctx, b, n, call)                                                           \
    if ((n) < (size_t)db__threads(ctx)) {                                                          \
        for (b = 0; b < (long)(n); b++) call;                                                      \
    } else {                                                                                       \
        DB__PARALLEL_FOR(ctx, static)                                                              \
        for (b = 0; b < (long)(n); b++) call;                                                      \
    }

/* ---- convolution and linear layers --------------------------------------------------------------
   y[b,oy,ox,:] = bias + sum over (ky,kx) of W[ky,kx] x[b, oy*stride + ky - pad, ox*stride + kx -
   pad, :]

   A weight [OC,IC,k,k] is kept as [k][OC][k*IC]: for each row ky of the kernel a matrix whose rows
   are as long as k neighbouring pixels. A region of the input is copied into lines with a halo of
   zeros, in which those k pixels lie one after the other; then

     convolution = sum over ky of (lines from ky on) x W[ky]^T,

   k matrix products whose rows of A overlap: each begins one pixel (or stride) after the last. A
   linear layer is the case k = 1, and needs no copy. The gradient of the input is the same
   convolution of dy with the mirrored, transposed weight; a stride becomes zeros between the pixels
   of dy. */

typedef struct db__conv {
    size_t B, H, W, C;    /* of the image that is read                        */
    size_t OH, OW, OC;    /* of the image that is written                     */
    size_t k, stride;
    size_t dilate;        /* zeros between the pixels read: dilate - 1        */
    long pad;             /* above and to the left                            */
    size_t Cp;            /* C padded to an even number where K goes by pairs */
    size_t K;             /* k * Cp padded to the kernels' multiple           */
    size_t rows, columns; /* of the regions in which the output is computed   */
    size_t by_y, by_x;    /* number of regions                                */
    size_t line;          /* pixels of input that a region's row meets        */
} db__conv;

static db__conv db__conv_of(const db__kernels *kern, const db_arg *in, const db_arg *out, size_t k,
                            size_t stride, size_t dilate, long pad, size_t pixels)
{
    db__conv v;
    v.B = in->dim[0], v.H = in->dim[1], v.W = in->dim[2], v.C = in->dim[3];
    v.OH = out->dim[1], v.OW = out->dim[2], v.OC = out->dim[3];
    v.k = k, v.stride = stride, v.dilate = dilate, v.pad = pad;
    v.Cp = DB__ROUND_UP(v.C, kern->k_multiple > 1 ? 2 : 1);
    v.K = DB__ROUND_UP(k * v.Cp, kern->k_multiple);
    v.columns = DB__MIN(v.OW, k == 1 ? pixels : 64);
    v.rows = DB__MIN(v.OH, DB__MAX(1, pixels / v.columns));
    v.by_y = DB__CEIL_DIV(v.OH, v.rows);
    v.by_x = DB__CEIL_DIV(v.OW, v.columns);
    v.line = (v.columns - 1) * stride + k;
    return v;
}

/* What a convolution reads and writes: out (+)= convolution of in, plus bias and residual, which
   may be NULL or absent. `add` never comes with these two: only the gradient of the input adds. */
typedef struct db__conv_args {
    const db_arg *out, *in, *weight, *bias, *residual;
    int mirrored, add; /* mirrored: the gradient of the input, see db__pack_conv */
} db__conv_args;

static const float *db__conv_bias(const db__conv_args *io)
{
    return io->bias ? db__floats(io->bias) : NULL;
}

/* The residual from element `to` of the output on; NULL without one. */
static const char *db__conv_residual(const db__conv_args *io, size_t to)
{
    return io->residual && io->residual->present ? db__at(io->residual, to) : NULL;
}

/* A region of output pixels: rows and columns of image b. */
typedef struct db__region {
    size_t b, y0, x0, rows, columns;
} db__region;

static db__region db__region_of(const db__conv *v, size_t index)
{
    db__region at;
    at.b = index / (v->by_y * v->by_x);
    at.y0 = index / v->by_x % v->by_y * v->rows, at.rows = DB__MIN(v->rows, v->OH - at.y0);
    at.x0 = index % v->by_x * v->columns, at.columns = DB__MIN(v->columns, v->OW - at.x0);
    return at;
}

/* Whether the rows of x can be read where they lie. */
static int db__conv_direct(const db__conv *v)
{
    return v->k == 1 && v->stride == 1 && v->dilate == 1 && v->K == v->C && v->pad == 0 &&
        v->OH == v->H && v->OW == v->W;
}

/* One line of input, from row y and column x (in dilated pixels) on, zeros where there is none:
   [n][Cp]. */
static void db__fill_line(const db__conv *v, char *line, const char *image, size_t size, long y,
                          long x, size_t n)
{
    long step = (long)v->dilate, first = 0, last = (long)n; /* of the pixels inside the image */
    size_t pixel = v->C * size, ld = v->Cp * size;
    if (y < 0 || y % step || y / step >= (long)v->H) {
        memset(line, 0, n * ld);
        return;
    }
    image += (size_t)(y / step) * v->W * pixel;
    first = DB__MIN(DB__MAX(0, -x), last);
    last = DB__MIN(DB__MAX(first, (long)((v->W - 1) * v->dilate) + 1 - x), last);
    if (step == 1 && ld == pixel) { /* pixels follow each other as in the image */
        memset(line, 0, (size_t)first * ld);
        memcpy(line + (size_t)first * ld, image + (size_t)(x + first) * pixel,
               (size_t)(last - first) * pixel);
        memset(line + (size_t)last * ld, 0, (n - (size_t)last) * ld);
        return;
    }
    memset(line, 0, n * ld);
    for (; first < last; first++)
        if ((x + first) % step == 0)
            memcpy(line + (size_t)first * ld, image + (size_t)((x + first) / step) * pixel, pixel);
}

/* Packs a panel, 16 columns from n0 on, of the weight [k][OC][k*IC]. Forward: B[ky][(kx,ic)][oc].
   Mirrored, for the gradient of the input: B[ky][(kx,oc)][ic] = W[k-1-ky][oc][(k-1-kx), ic]. */
static void db__pack_conv(const db__kernels *kern, const db__conv *v, char *panel, const float *w,
                          size_t n0, int mirrored)
{
    size_t OC = mirrored ? v->C : v->OC, IC = mirrored ? v->OC : v->C; /* of the layer */
    size_t row = v->k * IC, n = DB__MIN(v->OC - n0, 16), ky, kx;
    for (ky = 0; ky < v->k; ky++) {
        char *out = panel + ky * v->K * 16 * kern->size;
        if (!mirrored && v->Cp == v->C) {
            kern->pack_weight(out, w + (ky * OC + n0) * row, row, n, 1, row, v->K);
            continue;
        }
        memset(out, 0, v->K * 16 * kern->size);
        for (kx = 0; kx < v->k; kx++) {
            char *o = out + kx * v->Cp * 16 * kern->size;
            if (mirrored)
                kern->pack_weight(o, w + (v->k - 1 - ky) * OC * row + (v->k - 1 - kx) * IC + n0,
                                  v->C, n, row, 1, v->Cp);
            else
                kern->pack_weight(o, w + (ky * OC + n0) * row + kx * IC, v->C, n, 1, row, v->Cp);
        }
    }
}

enum {
    DB__PANELS = 8,   /* columns computed at once: 128, so that C stays in the second cache */
    DB__PIXELS = 128, /* of a region, or 32 tiles of Winograd's; 256 are no faster          */
    DB__WINOGRAD_CHANNELS = 32, DB__WINOGRAD_PIXELS = 64, /* from here on it pays           */
    /* Floats between positions: multiples of 4 KB apart they would share eight lines of the first
       cache, and a change of basis take 1.4 to 3 times as long. */
    DB__WINOGRAD_GAP = 16
};

/* f32 sums need no copy on their way to the output and begin with what joins them, unless bias and
   residual both do. Asked while measuring too, when nothing has its address yet. */
static int db__conv_in_place(const db__kernels *kern, const db__conv *v, const db__conv_args *io)
{
    return kern->size == sizeof(float) && v->OC % 16 == 0 &&
        !(io->bias && io->bias->present && io->residual && io->residual->present);
}

/* What the sums then begin with, from element `to` of the output, column n0, on: rows apart by OC,
   or 0 for a bias. NULL: zeros. */
static const float *db__conv_start(const db__conv_args *io, size_t to, size_t n0)
{
    const float *bias = db__conv_bias(io);
    if (io->add) return db__floats(io->out) + to;
    if (io->residual && io->residual->present) return db__floats(io->residual) + to;
    return bias ? bias + n0 : NULL;
}

/* How a convolution is cut into matrix products. */
typedef struct db__conv_plan {
    db__conv v;
    int direct;   /* the rows of x are read where they lie, else copied line by line, with a halo */
    int joined;   /* the rows of a region make one product, else each its own                     */
    int in_place; /* the sums are written where they belong                                       */
    size_t panels, groups;      /* of 16 columns; of DB__PANELS panels, computed at once          */
    size_t regions, split;      /* split: tasks that share out a region's columns                 */
    size_t lines, apart;        /* of input a region meets; pixels from one row to the next       */
    size_t beyond;              /* numbers that the last row of A reads behind its own            */
    size_t lines_bytes, thread_bytes; /* a thread's scratch: lines, then sums                     */
} db__conv_plan;

static db__conv_plan db__conv_plan_of(const db__kernels *kern, const db__conv *v,
                                      const db__conv_args *io)
{
    db__conv_plan p;
    size_t sums; /* rows of them */
    memset(&p, 0, sizeof p);
    p.v = *v, p.direct = db__conv_direct(v), p.in_place = db__conv_in_place(kern, v, io);
    /* Rows that follow each other are joined. On tiles short rows are, too, and the products of
       what lies between them thrown away. */
    p.joined = p.direct ? v->columns == v->W || v->rows == 1
                        : v->stride == 1 && v->columns < 32 && kern->tiles;
    p.panels = DB__CEIL_DIV(v->OC, 16), p.groups = DB__CEIL_DIV(p.panels, DB__PANELS);
    p.regions = v->B * v->by_y * v->by_x;
    p.split = p.regions < 16 ? p.groups : 1; /* few pixels: share out the columns too */
    p.lines = (v->rows - 1) * v->stride + v->k;
    p.apart = p.direct ? v->W : v->line * v->stride;
    p.beyond = v->K - v->k * v->Cp;
    p.lines_bytes = p.direct ? 0
                             : DB__ROUND_UP((p.lines * v->line * v->Cp + p.beyond) * kern->size,
                                            DB__ALIGN);
    sums = p.joined ? (v->rows - 1) * p.apart + v->columns : v->columns;
    p.thread_bytes = p.lines_bytes;
    if (!p.in_place)
        p.thread_bytes += DB__ROUND_UP(
            sums * DB__MIN(p.panels, (size_t)DB__PANELS) * 16 * sizeof(float), DB__ALIGN);
    return p;
}

/* One task: a region, all its columns or one group of them. */
static void db__conv_region(const db__kernels *kern, const db__conv_plan *p,
                            const db__conv_args *io, size_t task, const char *packed, char *own)
{
    const db__conv *v = &p->v;
    const db__region at = db__region_of(v, task / p->split);
    size_t size = kern->size, group = p->split > 1 ? task % p->split : 0,
           end = p->split > 1 ? group + 1 : p->groups, r, q;
    size_t step = p->joined ? at.rows : 1; /* rows of a product */
    const char *image = db__at(io->in, at.b * v->H * v->W * v->C);
    const float *bias = db__conv_bias(io);
    db__gemm g;
    memset(&g, 0, sizeof g);
    g.k = v->K, g.taps = v->k, g.lda = v->stride * v->Cp, g.a_k = 1, g.a_tap = v->line * v->Cp;
    g.b_panel = v->k * v->K * 16, g.b_k = 16, g.b_tap = v->K * 16;
    g.c = (float *)(void *)(own + p->lines_bytes);
    for (r = 0; !p->direct && r < p->lines; r++)
        db__fill_line(v, own + r * v->line * v->Cp * size, image, size,
                      (long)(at.y0 * v->stride + r) - v->pad, (long)(at.x0 * v->stride) - v->pad,
                      v->line);
    if (!p->direct) memset(own + p->lines * v->line * v->Cp * size, 0, p->beyond * size);
    for (; group < end; group++) {
        size_t n0 = group * DB__PANELS * 16, n = DB__MIN(v->OC - n0, (size_t)DB__PANELS * 16);
        g.panels = DB__CEIL_DIV(n, 16);
        g.ldc = p->in_place ? v->OC : g.panels * 16;
        g.b = packed + group * DB__PANELS * g.b_panel * size;
        for (r = 0; r < at.rows; r += step) {
            size_t to = ((at.b * v->OH + at.y0 + r) * v->OW + at.x0) * v->OC + n0;
            g.a = p->direct ? image + ((at.y0 + r) * v->W + at.x0) * v->C * size
                            : own + r * p->apart * v->Cp * size;
            g.m = (step - 1) * p->apart + at.columns;
            if (p->in_place) {
                g.c = (float *)db__at(io->out, to);
                g.start = db__conv_start(io, to, n0), g.lds = bias ? 0 : v->OC;
            }
            kern->gemm(&g);
            for (q = 0; q < step && !p->in_place; q++, to += v->OW * v->OC)
                kern->epilogue(db__at(io->out, to), v->OC, g.c + q * p->apart * g.ldc, g.ldc,
                               bias ? bias + n0 : NULL, db__conv_residual(io, to), at.columns, n,
                               io->add);
        }
    }
}

static void db__conv_run(db_ctx *ctx, db_call *c, const db__conv_args *io, db__conv v)
{
    const db__kernels *kern = db__kernels_for(ctx, io->out->dtype);
    const db__conv_plan p = db__conv_plan_of(kern, &v, io);
    size_t panel = 16 * v.k * v.K * kern->size;
    char *packed = (char *)db__scratch(c, p.panels * panel);
    char *own = (char *)db__scratch(c, p.thread_bytes * (size_t)db__threads(ctx));
    long task;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (task = 0; task < (long)p.panels; task++)
            db__pack_conv(kern, &v, packed + (size_t)task * panel, db__floats(io->weight),
                          (size_t)task * 16, io->mirrored);
    }
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)(p.regions * p.split); task++)
            db__conv_region(kern, &p, io, (size_t)task, packed,
                            own + p.thread_bytes * (size_t)db__thread_index());
    }
}

/* ---- the same for few pixels, k = 1 -------------------------------------------------------------
   Then the weight is most of what is read, and packing it would take three times as long as reading
   it once. So it becomes A, as it lies, and the pixels B: the product is y transposed. f32 only, as
   other types' weights have to be converted. The bits are those of db__conv_run, whose sums
   begin alike: no result depends on how many pixels come together. */

enum { DB__FEW_PIXELS = 128 };

static int db__conv_is_narrow(const db__kernels *kern, const db__conv *v)
{
    return kern->size == sizeof(float) && db__conv_direct(v) &&
        v->B * v->OH * v->OW <= DB__FEW_PIXELS;
}

static void db__conv_narrow(db_ctx *ctx, db_call *c, const db__conv_args *io, db__conv v)
{
    enum { ROWS = 64 }; /* outputs of a task */
    const db__kernels *kern = ctx->isa->f32;
    size_t pixels = v.B * v.OH * v.OW, columns = DB__ROUND_UP(pixels, 16);
    float *packed = (float *)db__scratch(c, columns * v.C * sizeof(float));
    float *own = (float *)db__scratch(c, 2 * ROWS * columns * (size_t)db__threads(ctx) *
                                             sizeof(float));
    int in_place = db__conv_in_place(kern, &v, io);
    const float *bias = db__conv_bias(io);
    long task;
    if (c->measuring) return;
    kern->pack(packed, v.C * 16, io->in->data, v.C, pixels, 1, v.C, v.C);
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)DB__CEIL_DIV(v.OC, ROWS); task++) {
            size_t n0 = (size_t)task * ROWS, n = DB__MIN(v.OC - n0, (size_t)ROWS);
            float *turned = own + 2 * ROWS * columns * (size_t)db__thread_index();
            const float *start = in_place ? db__conv_start(io, n0, n0) : NULL;
            size_t r, p;
            db__gemm g;
            memset(&g, 0, sizeof g);
            g.m = n, g.k = v.C, g.taps = 1, g.panels = columns / 16;
            g.a = db__floats(io->weight) + (io->mirrored ? n0 : n0 * v.C);
            g.lda = io->mirrored ? 1 : v.C, g.a_k = io->mirrored ? v.OC : 1;
            g.b = packed, g.b_panel = v.C * 16, g.b_k = 16;
            g.c = turned + ROWS * columns, g.ldc = g.lds = columns;
            g.start = start ? g.c : NULL;
            for (r = 0; start && r < n; r++)
                for (p = 0; p < columns; p++)
                    g.c[r * columns + p] = p < pixels ? start[(bias ? 0 : p * v.OC) + r] : 0;
            kern->gemm(&g);
            kern->transpose(turned, ROWS, g.c, columns, n, pixels, n);
            kern->epilogue(db__at(io->out, n0), v.OC, turned, ROWS,
                           bias && !in_place ? bias + n0 : NULL,
                           in_place ? NULL : db__conv_residual(io, n0), pixels, n,
                           io->add && !in_place);
        }
    }
}

/* ---- the same by Winograd's algorithm F(2x2, 3x3) -----------------------------------------------
   Lavin and Gray, 2016 (arXiv 1509.09308), section 4.1. A tile of 2 x 2 outputs depends on 4 x 4
   inputs; in the basis B^T d B of the inputs and G g G^T of the kernel the convolution is a product
   position by position: 16 multiplications for 4 outputs in place of 36. For each of the 16
   positions that is a matrix product [tiles][C] x [C][OC]. f32 only; its error is of the size of
   the sum's own rounding, as no constant but 1/2 occurs.

   It pays where the three changes of basis are small beside the products: channels enough, and
   pixels enough for the kernel's, which every call makes anew. The batch has no say, so that a
   sample's result does not depend on its company. */

static int db__conv_is_winograd(const db__kernels *kern, const db__conv *v)
{
    return kern->winograd_input && v->k == 3 && v->stride == 1 && v->dilate == 1 &&
        v->C % 16 == 0 && v->OC % 16 == 0 && v->C >= DB__WINOGRAD_CHANNELS &&
        v->OC >= DB__WINOGRAD_CHANNELS && v->OH * v->OW >= DB__WINOGRAD_PIXELS;
}

/* B^T x B of a region's tiles, row by row; positions, tiles and every 16 channels of `basis` are
   that many floats apart. */
static void db__winograd_basis(const db__kernels *kern, const db__conv *v, const db__region *at,
                               const db_arg *x, float *lines, float *basis, size_t position,
                               size_t tile, size_t panel)
{
    const char *image = db__at(x, at->b * v->H * v->W * v->C);
    size_t across = DB__CEIL_DIV(at->columns, 2), down = DB__CEIL_DIV(at->rows, 2), r;
    size_t line = (across * 2 + 2) * v->C;
    for (r = 0; r < down * 2 + 2; r++)
        db__fill_line(v, (char *)(lines + r * line), image, sizeof(float),
                      (long)(at->y0 + r) - v->pad, (long)at->x0 - v->pad, across * 2 + 2);
    for (r = 0; r < down; r++)
        kern->winograd_input(basis + r * across * tile, position, tile, panel,
                             lines + r * 2 * line, line, across, v->C);
}

static void db__conv_winograd(db_ctx *ctx, db_call *c, const db__conv_args *io, db__conv v)
{
    const db__kernels *kern = ctx->isa->f32;
    size_t panels = v.OC / 16, groups = DB__CEIL_DIV(panels, DB__PANELS), panel = 16 * v.C * 16;
    size_t rows = v.rows + v.rows % 2, tiles = rows / 2 * DB__CEIL_DIV(v.columns, 2);
    size_t by_y = DB__CEIL_DIV(v.OH, rows), regions = v.B * by_y * v.by_x;
    /* too few regions: columns are shared out too, though each share transforms the input anew */
    size_t split = regions < (size_t)db__threads(ctx) ? groups : 1;
    size_t wide = DB__MIN(panels, (size_t)DB__PANELS) * 16; /* columns computed at once */
    size_t position = tiles * v.C + DB__WINOGRAD_GAP, product = tiles * wide + DB__WINOGRAD_GAP;
    size_t lines_count = (rows + 2) * (DB__ROUND_UP(v.columns, 2) + 2) * v.C,
           basis_count = 16 * position, products_count = 16 * product;
    size_t own_count = lines_count + basis_count + products_count;
    float *u = (float *)db__scratch(c, panels * panel * sizeof(float));
    float *own = (float *)db__scratch(
        c, DB__MAX(own_count, 9 * v.C * 16) * (size_t)db__threads(ctx) * sizeof(float));
    const float *bias = db__conv_bias(io);
    long task;
    if (c->measuring) return;
    v.rows = rows, v.by_y = by_y;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (task = 0; task < (long)panels; task++) {
            float *g = own + (size_t)db__thread_index() * 9 * v.C * 16;
            db__pack_conv(kern, &v, (char *)g, db__floats(io->weight), (size_t)task * 16,
                          io->mirrored);
            kern->winograd_weight(u + (size_t)task * panel, g, v.C);
        }
    }
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)(regions * split); task++) {
            const db__region at = db__region_of(&v, (size_t)task / split);
            size_t first = split > 1 ? (size_t)task % split : 0,
                   last = split > 1 ? first + 1 : groups, group, r, q;
            size_t across = DB__CEIL_DIV(at.columns, 2), down = DB__CEIL_DIV(at.rows, 2);
            float *lines = own + (size_t)db__thread_index() * own_count;
            float *basis = lines + lines_count, *products = basis + basis_count;
            db__gemm g;
            db__winograd_basis(kern, &v, &at, io->in, lines, basis, position, v.C, 16);
            memset(&g, 0, sizeof g);
            g.m = down * across, g.k = v.C, g.taps = 1, g.lda = v.C, g.a_k = 1;
            g.b_panel = panel, g.b_k = 16;
            for (group = first; group < last; group++) {
                size_t n0 = group * DB__PANELS * 16, n = DB__MIN(v.OC - n0, wide);
                g.panels = n / 16, g.ldc = n;
                for (q = 0; q < 16; q++) {
                    g.a = basis + q * position, g.c = products + q * product;
                    g.b = u + n0 / 16 * panel + q * v.C * 16;
                    kern->gemm(&g);
                }
                for (r = 0; r < down; r++) {
                    size_t to = ((at.b * v.OH + at.y0 + r * 2) * v.OW + at.x0) * v.OC + n0;
                    kern->winograd_output(
                        (float *)(void *)db__at(io->out, to), v.OW * v.OC, v.OC,
                        DB__MIN(at.rows - r * 2, 2), at.columns, products + r * across * n,
                        product, n, bias ? bias + n0 : NULL,
                        (const float *)(const void *)db__conv_residual(io, to), io->add);
                }
            }
        }
    }
}

static void db__conv_any(db_ctx *ctx, db_call *c, const db__conv_args *io, db__conv v)
{
    const db__kernels *kern = db__kernels_for(ctx, io->out->dtype);
    if (db__conv_is_winograd(kern, &v)) db__conv_winograd(ctx, c, io, v);
    else if (db__conv_is_narrow(kern, &v)) db__conv_narrow(ctx, c, io, v);
    else db__conv_run(ctx, c, io, v);
}

/* a: y, x, w, bias, residual.  s: k, stride, pad */
static void db__cpu_conv2d(db_ctx *ctx, db_call *c)
{
    const db_arg *a = c->a;
    db__conv_args io = {&a[0], &a[1], &a[2], &a[3], &a[4], 0, 0};
    db__conv_any(ctx, c, &io,
                 db__conv_of(db__kernels_for(ctx, a[0].dtype), &a[1], &a[0], c->s[0], c->s[1], 1,
                             (long)c->s[2], DB__PIXELS));
}

/* a: dx, dy, w.  s: k, stride, pad.  i: add */
static void db__cpu_conv2d_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *a = c->a;
    db__conv_args io = {&a[0], &a[1], &a[2], NULL, NULL, 1, c->i[0]};
    db__conv_any(ctx, c, &io,
                 db__conv_of(db__kernels_for(ctx, a[0].dtype), &a[1], &a[0], c->s[0], 1, c->s[1],
                             (long)c->s[0] - 1 - (long)c->s[2], DB__PIXELS));
}

/* ---- the gradient of the weights ----------------------------------------------------------------
   dW[ky][oc][kx, ic] = sum over output pixels p of dY[p][oc] x[p stride + (ky,kx) - pad][ic]

   For each (ky,kx) a matrix product: A is dY transposed, K the pixels, B the channels of x. The
   pixels are walked in blocks; a block's x is packed into [C/16][pixels][16], in which another
   (ky,kx) is only another offset, for all k x k products: in the second cache up to some 320
   channels. The blocks are cut into `parts`, each with a sum of its own; a part of large weights
   into slices of OC, each of which packs x again. bf16 is multiplied in pairs of pixels where the
   processor can and the stride is 1, else in f32.

   Where the convolution goes by Winograd's algorithm, so does this, by the transpose of each step:
   dW = G^T S G, S = sum over tiles of (A dY A^T) (B^T x B), position by position. That is 16
   products [OC][tiles] x [tiles][C] in place of 9 [OC][pixels] x [pixels][C], with 4 pixels to a
   tile. A part keeps S and goes back to dW once, after its last block. */

typedef struct db__dw {
    db__conv v;
    int pairs, winograd; /* neither: db__dw_floats */
    size_t panels, ldc; /* of 16 channels of x; row length of a sum, k * 16 * panels       */
    size_t regions, per_block; /* regions of a block; in pairs each is a tap of the product       */
    size_t blocks, parts, part; /* part: the floats of a sum [k][OC][ldc]                         */
    size_t slice, slices;      /* of OC                                                           */
    size_t line;               /* pairs: pixels of a line with its halo, an even number           */
    size_t k_region, x_region; /* pairs: pixels of dY in a region, a multiple of 32; and of x     */
    size_t turned;             /* pairs: pixels of dY transposed at once                          */
    size_t tiles;              /* winograd: of a block, at most                                   */
    size_t x_bytes, line_bytes, dy_bytes, turned_bytes, sum_bytes; /* a thread's, in order */
} db__dw;

enum {
    DB__DW_PIXELS = 128,       /* of a block in db__dw_floats                                    */
    DB__DW_PIXELS_MANY = 512,  /* by pairs or Winograd; small regions share. 256: no faster      */
    DB__DW_SUMS = 1 << 21,     /* floats in the sums of all parts: 8 MB                          */
    DB__DW_PARTS = 16,         /* at most; from half of them on there is work without slices too */
    DB__DW_SLICE = 256         /* outputs: with 64 packing x takes 8 to 15 % more time           */
};

static db__dw db__dw_of(const db__kernels *kern, const db_arg *x, const db_arg *dy, size_t k,
                        size_t stride, long pad)
{
    db__dw w;
    db__conv v = db__conv_of(kern, x, dy, k, stride, 1, pad, DB__DW_PIXELS);
    size_t wanted;
    int many;
    memset(&w, 0, sizeof w);
    w.pairs = kern->pairs && stride == 1, w.winograd = db__conv_is_winograd(kern, &v);
    many = w.pairs || w.winograd;
    if (many) v = db__conv_of(kern, x, dy, k, stride, 1, pad, DB__DW_PIXELS_MANY);
    if (w.winograd) v.rows += v.rows % 2, v.by_y = DB__CEIL_DIV(v.OH, v.rows);
    w.v = v;
    w.panels = DB__CEIL_DIV(v.C, 16), w.ldc = k * w.panels * 16;
    w.regions = v.B * v.by_y * v.by_x;
    w.per_block = many ? DB__MAX(1, DB__DW_PIXELS_MANY / (v.rows * v.columns)) : 1;
    w.per_block = DB__MIN(w.per_block, w.regions);
    w.blocks = DB__CEIL_DIV(w.regions, w.per_block);
    w.part = k * v.OC * w.ldc;
    wanted = DB__MIN(w.blocks, (size_t)DB__DW_SUMS / w.part);
    for (w.parts = 1; w.parts < DB__DW_PARTS && w.parts * 2 <= wanted;) w.parts *= 2;
    w.slices = w.parts >= DB__DW_PARTS / 2 ? 1 : DB__CEIL_DIV(v.OC, DB__DW_SLICE);
    w.slice = DB__ROUND_UP(DB__CEIL_DIV(v.OC, w.slices), 16);
    w.slices = DB__CEIL_DIV(v.OC, w.slice);
    if (w.pairs) {
        w.line = DB__ROUND_UP(v.line, 2);
        w.k_region = DB__ROUND_UP(v.rows * w.line, 32);
        w.x_region = (k - 1) * w.line + k / 2 * 2 + w.k_region;
        w.turned = kern->tiles ? 32 : w.k_region; /* a tile's rows side by side */
        w.x_bytes = (k > 1 ? 2 : 1) * w.per_block * w.x_region * w.panels * 16 * 2;
        w.line_bytes = (w.line + 1) * v.C * 2;
        w.dy_bytes = w.k_region * w.slice * 2;
        w.turned_bytes = w.per_block * w.k_region * w.slice * 2;
    } else if (w.winograd) {
        w.tiles = w.per_block * (v.rows / 2) * DB__CEIL_DIV(v.columns, 2);
        w.x_bytes = 16 * (w.tiles * v.C + DB__WINOGRAD_GAP) * sizeof(float);
        w.line_bytes = (v.rows + 2) * (DB__ROUND_UP(v.columns, 2) + 2) * v.C * sizeof(float);
        w.dy_bytes = 16 * (w.tiles * w.slice + DB__WINOGRAD_GAP) * sizeof(float);
        w.sum_bytes = 16 * w.slice * v.C * sizeof(float);
    } else {
        w.x_bytes = ((v.rows - 1) * stride + k) * v.line * w.panels * 16 * sizeof(float);
        w.line_bytes = kern->size == sizeof(float) ? 0 : v.line * v.C * sizeof(float);
        w.dy_bytes = kern->size == sizeof(float) && w.slices == 1
            ? 0
            : v.rows * v.columns * w.slice * sizeof(float);
    }
    w.x_bytes = DB__ROUND_UP(w.x_bytes, DB__ALIGN),
    w.line_bytes = DB__ROUND_UP(w.line_bytes, DB__ALIGN);
    w.dy_bytes = DB__ROUND_UP(w.dy_bytes, DB__ALIGN),
    w.turned_bytes = DB__ROUND_UP(w.turned_bytes, DB__ALIGN);
    w.sum_bytes = DB__ROUND_UP(w.sum_bytes, DB__ALIGN);
    return w;
}

/* Of the outputs [*from, *to), those whose input, at i * stride + shift, lies in [0, limit). */
static void db__inside(size_t *from, size_t *to, size_t stride, long shift, size_t limit)
{
    while (*from < *to && (long)(*from * stride) + shift < 0) ++*from;
    while (*to > *from && (long)((*to - 1) * stride) + shift >= (long)limit) --*to;
}

/* A block's products, added to the rows [oc0, oc0 + m) of a sum, or their first value. In f32; what
   meets padding is left out. */
static void db__dw_floats(db_ctx *ctx, const db__dw *w, const db_arg *x, const db_arg *dy,
                          size_t block, size_t oc0, size_t m, char *scratch, float *sum, int add)
{
    const db__kernels *kern = db__kernels_for(ctx, x->dtype), *f32 = ctx->isa->f32;
    const db__conv *v = &w->v;
    const db__region at = db__region_of(v, block);
    const char *image = db__at(x, at.b * v->H * v->W * v->C),
               *grad = db__at(dy, ((at.b * v->OH + at.y0) * v->OW + at.x0) * v->OC + oc0);
    size_t pad = (size_t)v->pad, s = v->stride, dy_line = v->OW * v->OC, dy_pixel = v->OC, y, kx,
           ky, column, columns, panel;
    /* the pixels of x that the block meets: rows [top, bottom), columns [left, right) */
    size_t top = at.y0 * s - DB__MIN(at.y0 * s, pad),
           bottom = DB__MIN(v->H, (at.y0 + at.rows - 1) * s + v->k - pad);
    size_t left = at.x0 * s - DB__MIN(at.x0 * s, pad),
           right = DB__MIN(v->W, (at.x0 + at.columns - 1) * s + v->k - pad);
    float *panels = (float *)(void *)scratch, *line = (float *)(void *)(scratch + w->x_bytes);
    float *copy = (float *)(void *)(scratch + w->x_bytes + w->line_bytes);
    columns = right - left, panel = (bottom - top) * columns * 16;
    for (y = top; y < bottom; y++) {
        const void *row = image + (y * v->W + left) * v->C * kern->size;
        if (kern != f32) kern->to_f32(line, row, columns * v->C, 0), row = line;
        f32->pack(panels + (y - top) * columns * 16, panel, row, columns, v->C, v->C, 1, columns);
    }
    if (w->dy_bytes) {
        dy_pixel = m, dy_line = at.columns * m;
        for (y = 0; y < at.rows; y++)
            for (column = 0; column < at.columns; column++)
                kern->to_f32(copy + y * dy_line + column * m,
                             grad + (y * v->OW + column) * v->OC * kern->size, m, 0);
        grad = (const char *)copy;
    }
    for (ky = 0; ky < v->k; ky++)
        for (kx = 0; kx < v->k; kx++) {
            size_t y0 = at.y0, y1 = at.y0 + at.rows, x0 = at.x0, x1 = at.x0 + at.columns;
            db__gemm g;
            db__inside(&y0, &y1, s, (long)ky - v->pad, v->H);
            db__inside(&x0, &x1, s, (long)kx - v->pad, v->W);
            g.m = m, g.k = x1 - x0, g.panels = w->panels;
            g.taps = g.k ? y1 - y0 : 0; /* none: the product is zero, and neither A nor B is read */
            g.a = g.taps ? (const float *)(const void *)grad + (y0 - at.y0) * dy_line +
                    (x0 - at.x0) * dy_pixel
                         : NULL;
            g.lda = 1, g.a_k = dy_pixel, g.a_tap = dy_line;
            g.b = g.taps
                ? panels + ((y0 * s + ky - pad - top) * columns + x0 * s + kx - pad - left) * 16
                : NULL;
            g.b_panel = panel, g.b_k = s * 16, g.b_tap = s * columns * 16;
            g.c = sum + (ky * v->OC + oc0) * w->ldc + kx * w->panels * 16;
            g.ldc = g.lds = w->ldc, g.start = add ? g.c : NULL;
            f32->gemm(&g);
        }
}

/* In pairs: the lines of x that region i of a block meets, zeros where it has none, packed; odd is
   x one pixel on. */
static void db__dw_pack_x(const db__kernels *kern, const db__dw *w, const db_arg *x,
                          const db__region *at, size_t i, uint16_t *even, uint16_t *odd,
                          uint16_t *line)
{
    const db__conv *v = &w->v;
    size_t panel = w->per_block * w->x_region * 16, lines = v->rows + v->k - 1, r, p;
    for (r = 0; r < lines; r++) {
        long y = (long)(at->y0 + r) - v->pad, left = (long)at->x0 - v->pad,
             right = DB__MIN(left + (long)w->line + 1, (long)v->W);
        size_t first = left < 0 ? (size_t)-left : 0, last = (size_t)(right - left),
               to = (i * w->x_region + r * w->line) * 16;
        if (y < 0 || y >= (long)v->H || r >= at->rows + v->k - 1) {
            memset(line, 0, w->line_bytes);
        } else {
            size_t pixel = (at->b * v->H + (size_t)y) * v->W + (size_t)(left + (long)first);
            memset(line, 0, first * v->C * 2);
            memcpy(line + first * v->C, db__at(x, pixel * v->C), (last - first) * v->C * 2);
            memset(line + last * v->C, 0, (w->line + 1 - last) * v->C * 2);
        }
        kern->pack(even + to, panel, line, w->line, v->C, v->C, 1, w->line);
        if (v->k > 1) kern->pack(odd + to, panel, line + v->C, w->line, v->C, v->C, 1, w->line);
    }
    for (p = 0; p < w->panels; p++) { /* what the last lines read beyond meets zeros, but has to be
                                         finite */
        size_t end = p * panel + (i * w->x_region + lines * w->line) * 16,
               rest = (w->x_region - lines * w->line) * 16 * 2;
        memset(even + end, 0, rest);
        if (v->k > 1) memset(odd + end, 0, rest);
    }
}

/* The region's dY of the outputs [oc0, oc0 + m), lines padded with zeros: [pixels][m] -> to
   [m][pixels], or on tiles [pixels / 32][m][32]. */
static void db__dw_turn_dy(const db__kernels *kern, const db__dw *w, const db_arg *dy,
                           const db__region *at, size_t oc0, size_t m, uint16_t *grad, uint16_t *to)
{
    const db__conv *v = &w->v;
    size_t r, p;
    for (r = 0; r < at->rows; r++) {
        size_t pixel = (at->b * v->OH + at->y0 + r) * v->OW + at->x0;
        const char *from = db__at(dy, pixel * v->OC + oc0);
        uint16_t *line = grad + r * w->line * m;
        if (m == v->OC) memcpy(line, from, at->columns * m * 2);
        else for (p = 0; p < at->columns; p++) memcpy(line + p * m, from + p * v->OC * 2, m * 2);
        memset(line + at->columns * m, 0, (w->line - at->columns) * m * 2);
    }
    memset(grad + at->rows * w->line * m, 0, (w->k_region - at->rows * w->line) * m * 2);
    for (p = 0; p < w->k_region; p += w->turned)
        kern->transpose(to + p * m, w->turned, grad + p * m, m, w->turned, m, w->turned);
}

/* A block's products in pairs of pixels. K runs over whole lines with their halo, where dY is zero.
   Pairs side by side serve every second kx; for the others x is packed again, one pixel on. */
static void db__dw_pairs(db_ctx *ctx, const db__dw *w, const db_arg *x, const db_arg *dy,
                         size_t block, size_t oc0, size_t m, char *scratch, float *sum, int add)
{
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    const db__conv *v = &w->v;
    size_t n = DB__MIN(w->per_block, w->regions - block * w->per_block),
           panel = w->per_block * w->x_region * 16, i, kx, ky;
    uint16_t *even = (uint16_t *)(void *)scratch, *odd = even + w->panels * panel;
    uint16_t *line = (uint16_t *)(void *)(scratch + w->x_bytes),
             *grad = (uint16_t *)(void *)((char *)line + w->line_bytes);
    uint16_t *turned = (uint16_t *)(void *)((char *)grad + w->dy_bytes);
    for (i = 0; i < n; i++) {
        const db__region at = db__region_of(v, block * w->per_block + i);
        db__dw_pack_x(kern, w, x, &at, i, even, odd, line);
        db__dw_turn_dy(kern, w, dy, &at, oc0, m, grad, turned + i * w->k_region * m);
    }
    for (ky = 0; ky < v->k; ky++)
        for (kx = 0; kx < v->k; kx++) {
            db__gemm g;
            g.m = m, g.k = w->k_region, g.taps = n, g.panels = w->panels;
            g.a = turned, g.lda = w->turned, g.a_tap = w->k_region * m;
            g.a_k = w->turned < w->k_region ? m : 1; /* on tiles the next 32 pixels lie 32 m on */
            g.b = (kx % 2 ? odd : even) + (ky * w->line + kx / 2 * 2) * 16;
            g.b_panel = panel, g.b_k = 16, g.b_tap = w->x_region * 16;
            g.c = sum + (ky * v->OC + oc0) * w->ldc + kx * w->panels * 16;
            g.ldc = g.lds = w->ldc, g.start = add ? g.c : NULL;
            kern->gemm(&g);
        }
}

/* A block's products in Winograd's basis, added to the sums [16][m][C], or their first value; after
   a part's last block winograd_weight_back makes dW of them. */
static void db__dw_winograd(db_ctx *ctx, const db__dw *w, const db_arg *x, const db_arg *dy,
                            size_t block, size_t oc0, size_t m, char *scratch, float *sum, int add)
{
    const db__kernels *kern = ctx->isa->f32;
    const db__conv *v = &w->v;
    size_t panel = w->tiles * 16, tile = 0, i, r, q;
    size_t position = w->tiles * v->C + DB__WINOGRAD_GAP,
           grad_position = w->tiles * m + DB__WINOGRAD_GAP;
    float *basis = (float *)(void *)scratch, *lines = (float *)(void *)(scratch + w->x_bytes);
    float *grad = (float *)(void *)((char *)lines + w->line_bytes);
    for (i = block * w->per_block; i < DB__MIN((block + 1) * w->per_block, w->regions); i++) {
        const db__region at = db__region_of(v, i);
        size_t across = DB__CEIL_DIV(at.columns, 2);
        db__winograd_basis(kern, v, &at, x, lines, basis + tile * 16, position, 16, panel);
        for (r = 0; r < at.rows; r += 2, tile += across) {
            size_t from = ((at.b * v->OH + at.y0 + r) * v->OW + at.x0) * v->OC + oc0;
            kern->winograd_output_back(grad + tile * m, grad_position, db__floats(dy) + from,
                                       v->OW * v->OC, v->OC, DB__MIN(at.rows - r, 2), at.columns,
                                       m);
        }
    }
    for (q = 0; q < 16; q++) {
        db__gemm g;
        g.m = m, g.k = tile, g.taps = 1, g.panels = w->panels;
        g.a = grad + q * grad_position, g.lda = 1, g.a_k = m, g.a_tap = 0;
        g.b = basis + q * position, g.b_panel = panel, g.b_k = 16, g.b_tap = 0;
        g.c = sum + q * m * v->C, g.ldc = g.lds = v->C, g.start = add ? g.c : NULL;
        kern->gemm(&g);
    }
}

/* a: dw, dbias, x, dy.  s: k, stride, pad */
static void db__cpu_conv2d_dw(db_ctx *ctx, db_call *c)
{
    const db_arg *dw = &c->a[0], *dbias = &c->a[1], *x = &c->a[2], *dy = &c->a[3];
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    const db__dw w = db__dw_of(kern, x, dy, c->s[0], c->s[1], (long)c->s[2]);
    const db__conv *v = &w.v;
    int in_place = w.parts == 1 && w.panels * 16 == v->C; /* dW itself is the only sum */
    size_t thread_bytes = w.x_bytes + w.line_bytes + w.dy_bytes + w.turned_bytes + w.sum_bytes,
           pixels = v->B * v->OH * v->OW, tasks = w.parts * w.slices,
           threads = (size_t)db__threads(ctx);
    char *own = (char *)db__scratch(c, thread_bytes * DB__MIN(tasks, threads));
    float *sums = (float *)db__scratch(c, in_place ? 0 : w.parts * w.part * sizeof(float));
    float *bias_sums = (float *)db__scratch(c, w.parts * v->OC * sizeof(float));
    long task;
    if (c->measuring) return;
    if (in_place && dw->present) sums = (float *)dw->data;
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)tasks; task++) {
            size_t part = (size_t)task / w.slices, oc0 = (size_t)task % w.slices * w.slice,
                   m = DB__MIN(w.slice, v->OC - oc0), block;
            size_t first = w.blocks * part / w.parts, last = w.blocks * (part + 1) / w.parts;
            size_t mine = tasks <= threads ? (size_t)task : (size_t)db__thread_index();
            char *scratch = own + thread_bytes * mine;
            float *sum = sums + part * w.part;
            float *added =
                w.winograd ? (float *)(void *)(scratch + thread_bytes - w.sum_bytes) : sum;
            for (block = first; block < last && dw->present; block++)
                (w.winograd    ? db__dw_winograd
                     : w.pairs ? db__dw_pairs
                               : db__dw_floats)(ctx, &w, x, dy, block, oc0, m, scratch, added,
                                                (in_place && !w.winograd) || block > first);
            if (w.winograd && dw->present)
                kern->winograd_weight_back(sum + oc0 * w.ldc, v->OC * w.ldc, added, m, v->C,
                                           in_place);
            if (oc0 == 0 && dbias->present) {
                size_t from = pixels * part / w.parts, to = pixels * (part + 1) / w.parts;
                memset(bias_sums + part * v->OC, 0, v->OC * sizeof(float));
                kern->column_sums(bias_sums + part * v->OC, db__at(dy, from * v->OC), to - from,
                                  v->OC);
            }
        }
    }
    {   /* add the parts in order */
        DB__PARALLEL_FOR(ctx, static)
        for (task = 0; task < (long)(v->k * v->OC); task++) {
            size_t kx, p;
            float *out = dw->present ? (float *)dw->data + (size_t)task * v->k * v->C : NULL;
            for (p = 0; p < w.parts && dw->present && !in_place; p++)
                for (kx = 0; kx < v->k; kx++)
                    ctx->isa->f32->axpby(out + kx * v->C,
                                         sums + p * w.part + (size_t)task * w.ldc +
                                             kx * w.panels * 16,
                                         NULL, 1, 0, v->C, 1);
            if (dbias->present && (size_t)task < v->OC)
                for (p = 0; p < w.parts; p++)
                    ((float *)dbias->data)[task] += bias_sums[p * v->OC + (size_t)task];
        }
    }
}

static void db__conv2d_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), x = n->arg[1], w = n->arg[2], bias = n->arg[3], arg[4];
    db__node *made;
    int add = 0;
    if (dy.id < 0) return;
    /* the weights' first: x may be forgotten before there is a dx */
    if (db__needs_grad(t, w) || db__needs_grad(t, bias)) {
        arg[0] = db__needs_grad(t, w) ? db__sum_target(t, w) : db_none;
        arg[1] = db__needs_grad(t, bias) ? db__sum_target(t, bias) : db_none;
        arg[2] = x, arg[3] = dy;
        made = db__record(t, DB_OP_CONV2D_DW, 4, arg);
        if (made) memcpy(made->s, n->s, sizeof made->s);
    }
    if (db__needs_grad(t, x)) {
        arg[0] = db__grad_target(t, x, &add);
        arg[0].n_dims = 4, memcpy(arg[0].dim, x.dim, sizeof x.dim);
        arg[1] = dy, arg[2] = w;
        made = db__record(t, DB_OP_CONV2D_DX, 3, arg);
        if (made) memcpy(made->s, n->s, sizeof made->s), made->i[0] = add;
    }
    db__grad_pass(t, n->arg[4], dy);
}

db_tensor db_conv2d(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor residual,
                    size_t stride, size_t pad_begin, size_t pad_end)
{
    db_tensor arg[5], y;
    db__node *n;
    size_t dim[4], k = w.n_dims == 4 ? w.dim[2] : 1;
    if (t->ctx->result != DB_OK) return db_none;
    if (x.n_dims != 4 || (w.n_dims != 4 && w.n_dims != 2) || x.dim[3] != w.dim[1] ||
        (w.n_dims == 4 && w.dim[3] != k) || x.dim[1] + pad_begin + pad_end < k ||
        x.dim[2] + pad_begin + pad_end < k)
        return db__shape_fail(t, "conv2d: input [B,H,W,IC] and weight [OC,IC,k,k]", x, w);
    if (bias.id >= 0 && db_count(bias) != w.dim[0])
        return db__shape_fail(t, "conv2d: weight [OC,IC,k,k] and bias [OC]", w, bias);
    if (stride == 0 || pad_begin > k || pad_end > k) { /* windows far from the picture */
        db__fail(t->ctx, DB_ERROR_SHAPE,
                 "conv2d: a stride of %zu and a padding of %zu and %zu with a kernel of %zu",
                 stride, pad_begin, pad_end, k);
        return db_none;
    }
    dim[0] = x.dim[0];
    dim[1] = (x.dim[1] + pad_begin + pad_end - k) / stride + 1;
    dim[2] = (x.dim[2] + pad_begin + pad_end - k) / stride + 1;
    dim[3] = w.dim[0];
    y = db__activation(t, 4, dim);
    if (residual.id >= 0 && db_count(residual) != db_count(y))
        return db__shape_fail(t, "conv2d: residual and output", residual, y);
    arg[0] = y, arg[1] = x, arg[2] = w, arg[3] = bias, arg[4] = residual;
    n = db__record(t, DB_OP_CONV2D, 5, arg);
    if (!n) return db_none;
    n->s[0] = k, n->s[1] = stride, n->s[2] = pad_begin;
    db__inherit_grad(t, y, 4, arg + 1);
    return y;
}

/* y[..., OC] = x[..., IC] W^T + bias + residual: a convolution, k = 1, over one row of pixels. */
db_tensor db_linear(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor residual)
{
    size_t C = x.n_dims ? x.dim[x.n_dims - 1] : 1, dim[4];
    db_tensor y, flat;
    if (!db__given(t, x)) return db_none;
    flat = db__shape4(t, x, 1, 1, db_count(x) / C, C);
    y = db_conv2d(t, flat, w, bias, residual, 1, 0, 0);
    if (y.id < 0) return y;
    memcpy(dim, x.dim, sizeof dim);
    dim[x.n_dims - 1] = y.dim[3];
    return db_reshape(t, y, x.n_dims, dim);
}

/* ---- group normalisation ------------------------------------------------------------------------
   y = act((xhat w + b) (1 + s) + h), xhat = (x - mean) rstd over the pixels and channels of a
   group; (s, h) = scale_shift [B,2C] come from the time embedding (Imagen, appendix B) or are
   absent.

   All of it is u = (x - mean) scale + shift per sample and channel, so one pass over memory
   suffices: scale = rstd w (1 + s),  shift = b (1 + s) + h. */

enum { DB__NORM_PIXELS = 128 }; /* to a piece: short enough for sums in f32 */

typedef struct db__norm {
    size_t B, HW, C, G, cg, chunks;
} db__norm;

static db__norm db__norm_of(const db_arg *x, size_t groups)
{
    db__norm v;
    v.B = x->dim[0];
    v.C = x->dim[x->n_dims - 1];
    v.HW = db__arg_count(x) / v.B / v.C;
    v.G = groups;
    v.cg = v.C / groups;
    v.chunks = DB__CEIL_DIV(v.HW, DB__NORM_PIXELS);
    return v;
}

/* The folded scale[C], shift[C] and mean[C] of sample b, one after the other. */
static void db__norm_fold(const db__norm *v, size_t b, const float *stats, const float *w,
                          const float *bias, const float *ss, float *fold)
{
    size_t ch;
    for (ch = 0; ch < v->C; ch++) {
        const float *st = stats + (b * v->G + ch / v->cg) * 3;
        float mean = st[0], rstd = st[1], s = ss ? 1 + ss[b * 2 * v->C + ch] : 1,
              h = ss ? ss[b * 2 * v->C + v->C + ch] : 0;
        fold[ch] = rstd * w[ch] * s;
        fold[v->C + ch] = bias[ch] * s + h - st[2] * fold[ch];
        fold[2 * v->C + ch] = mean;
    }
}

/* scale_shift as floats, whatever the activations are. */
static const float *db__norm_scale_shift(const db__kernels *kern, db_call *c, const db_arg *ss)
{
    float *copy;
    if (!ss->present) return NULL;
    copy = (float *)db__scratch(c, db__arg_count(ss) * sizeof(float));
    if (copy) kern->to_f32(copy, ss->data, db__arg_count(ss), 0);
    return copy;
}

/* Group g's mean and sum of squares around it, pixel by pixel: for where the first pixel, from
   which the pieces count, is so far from the others that their sums cancel. */
static void db__norm_anew(const db__kernels *kern, const db__norm *v, size_t g, const char *x,
                          double *mean, double *spread)
{
    size_t k, n = v->HW * v->cg;
    int pass;
    double sum[2] = {0, 0};
    for (pass = 0; pass < 2; pass++)
        for (k = 0; k < n; k++) {
            float here;
            kern->to_f32(&here, x + (k / v->cg * v->C + g * v->cg + k % v->cg) * kern->size, 1, 0);
            sum[pass] += pass ? pow((double)here - sum[0] / (double)n, 2) : (double)here;
        }
    *mean = sum[0] / (double)n, *spread = sum[1];
}

/* A sample's mean, 1 / standard deviation, and what rounding the mean lost, for each group: from
   the sums of its pieces [chunks][2][C]. */
static void db__norm_stats(const db__kernels *kern, const db__norm *v, float *stats,
                           const float *sum, const char *x, float eps)
{
    size_t g, ch, k, j;
    for (g = 0; g < v->G; g++, stats += 3) {
        double mean = 0, spread = 0, squares = 0, n = (double)v->HW;
        for (k = 0; k < 2; k++) /* first the group's mean, then the variance around it */
            for (ch = g * v->cg; ch < (g + 1) * v->cg; ch++) {
                double s = 0, q = 0, m;
                float x0;
                for (j = 0; j < v->chunks; j++) {
                    s += (double)sum[j * v->C * 2 + ch];
                    q += (double)sum[j * v->C * 2 + v->C + ch];
                }
                kern->to_f32(&x0, x + ch * kern->size, 1, 0);
                m = (double)x0 + s / n;
                if (k == 0) mean += m / (double)v->cg, squares += q;
                else spread += q - s * s / n + n * (m - mean) * (m - mean);
            }
        if (spread < 1e-3 * squares) db__norm_anew(kern, v, g, x, &mean, &spread);
        stats[0] = (float)mean;
        stats[1] = (float)(1.0 / sqrt(spread / (n * (double)v->cg) + (double)eps));
        stats[2] = (float)(mean - (double)(float)mean);
    }
}

/* The whole of sample b, so that it is read a second time from the second cache. */
static void db__norm_sample(db_ctx *ctx, const db_call *c, const db__norm *v, size_t b, float *sum,
                            float *fold, const float *ss)
{
    const db_arg *y = &c->a[0], *x = &c->a[2];
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    float *stats = (float *)c->a[1].data;
    long i;
    if (!c->i[1]) {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)v->chunks; i++) {
            size_t p = (size_t)i * DB__NORM_PIXELS;
            kern->norm_sums(sum + (size_t)i * v->C * 2, sum + (size_t)i * v->C * 2 + v->C,
                            db__at(x, b * v->HW * v->C), db__at(x, (b * v->HW + p) * v->C),
                            DB__MIN(v->HW - p, (size_t)DB__NORM_PIXELS), v->C);
        }
        db__norm_stats(kern, v, stats + b * v->G * 3, sum, db__at(x, b * v->HW * v->C), c->f[0]);
    }
    db__norm_fold(v, b, stats, db__floats(&c->a[3]), db__floats(&c->a[4]), ss, fold);
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)v->chunks; i++) {
            size_t p = (size_t)i * DB__NORM_PIXELS, at = (b * v->HW + p) * v->C;
            kern->norm_apply(db__at(y, at), db__at(x, at),
                             DB__MIN(v->HW - p, (size_t)DB__NORM_PIXELS), v->C, fold, fold + v->C,
                             fold + 2 * v->C, c->i[0]);
        }
    }
}

/* a: y, stats [B,G,3] (mean, rstd, what rounding the mean lost), x, w, b, scale_shift.  s: groups.
   i: act, the stats are there already.  f: eps */
static void db__cpu_group_norm(db_ctx *ctx, db_call *c)
{
    const db_arg *x = &c->a[2];
    db__norm v = db__norm_of(x, c->s[0]);
    float *sum = (float *)db__scratch(c, v.B * v.chunks * v.C * 2 * sizeof(float));
    float *fold = (float *)db__scratch(c, v.B * v.C * 3 * sizeof(float));
    const float *ss = db__norm_scale_shift(db__kernels_for(ctx, x->dtype), c, &c->a[5]);
    long b;
    if (c->measuring) return;
    DB__EACH_SAMPLE(ctx, b, v.B,
                    db__norm_sample(ctx, c, &v, (size_t)b, sum + (size_t)b * v.chunks * v.C * 2,
                                    fold + (size_t)b * v.C * 3, ss))
}

/* Folds a sample's sums of g and g (x - mean) into the constants c0 and c1 of dx, f[3C..5C), and
   into S [4][C]: what it adds to the gradients of the bias and the weight, and its own gradient of
   scale and shift. */
static void db__norm_back_fold(const db_call *c, const db__norm *v, size_t b, const float *sum,
                               float *f, float *S, const float *ss)
{
    const float *stats = db__floats(&c->a[6]), *w = db__floats(&c->a[7]),
                *bias = db__floats(&c->a[8]);
    size_t g, ch, j;
    float *D = S + v->C;
    for (g = 0; g < v->G; g++) {
        double m1 = 0, m2 = 0, n = (double)v->HW * (double)v->cg;
        double rstd = (double)stats[(b * v->G + g) * 3 + 1],
               rest = (double)stats[(b * v->G + g) * 3 + 2];
        for (ch = g * v->cg; ch < (g + 1) * v->cg; ch++) {
            double s = 0, d = 0, scale = ss ? 1 + (double)ss[b * 2 * v->C + ch] : 1;
            for (j = 0; j < v->chunks; j++) {
                s += (double)sum[j * v->C * 2 + ch];
                d += (double)sum[j * v->C * 2 + v->C + ch];
            }
            d = (d - rest * s) * rstd; /* sum of g xhat */
            m1 += (double)w[ch] * scale * s / n;
            m2 += (double)w[ch] * scale * d / n;
            S[ch] = (float)(s * scale);
            D[ch] = (float)(d * scale);
            S[2 * v->C + ch] = (float)((double)w[ch] * d + (double)bias[ch] * s);
            S[3 * v->C + ch] = (float)s;
        }
        for (ch = g * v->cg; ch < (g + 1) * v->cg; ch++) { /* dx = scale g - rstd (m1 + xhat m2) */
            f[3 * v->C + ch] = (float)(-rstd * m1);
            f[4 * v->C + ch] = (float)(-rstd * rstd * m2);
        }
    }
}

/* The gradient within sample b. f [5][C]: scale, shift, mean, c0, c1. g [H*W][C] is computed once
   and kept: its activation's slope is most of the work. */
static void db__norm_back_sample(db_ctx *ctx, const db_call *c, const db__norm *v, size_t b,
                                 float *g, float *sum, float *f, float *S, const float *ss)
{
    const db_arg *dx = &c->a[0], *dss = &c->a[3], *dy = &c->a[4], *x = &c->a[5];
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    long i;
    db__norm_fold(v, b, db__floats(&c->a[6]), db__floats(&c->a[7]), db__floats(&c->a[8]), ss, f);
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)v->chunks; i++) {
            size_t p = (size_t)i * DB__NORM_PIXELS, at = (b * v->HW + p) * v->C;
            kern->norm_back_sums(g + p * v->C, sum + (size_t)i * v->C * 2,
                                 sum + (size_t)i * v->C * 2 + v->C, db__at(x, at), db__at(dy, at),
                                 DB__MIN(v->HW - p, (size_t)DB__NORM_PIXELS), v->C, f, f + v->C,
                                 f + 2 * v->C, c->i[0]);
        }
    }
    db__norm_back_fold(c, v, b, sum, f, S, ss);
    if (dss->present) kern->from_f32(db__at(dss, b * 2 * v->C), S + 2 * v->C, 2 * v->C, c->i[2]);
    if (dx->present) {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)v->chunks; i++) {
            size_t p = (size_t)i * DB__NORM_PIXELS, at = (b * v->HW + p) * v->C;
            kern->norm_back_apply(db__at(dx, at), db__at(x, at), g + p * v->C,
                                  DB__MIN(v->HW - p, (size_t)DB__NORM_PIXELS), v->C, f,
                                  f + 2 * v->C, f + 3 * v->C, f + 4 * v->C, c->i[1]);
        }
    }
}

/* a: dx, dw, db, dscale_shift, dy, x, stats, w, b, scale_shift.  s: groups.  i: act, add x, add
   scale_shift */
static void db__cpu_group_norm_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *x = &c->a[5];
    db__norm v = db__norm_of(x, c->s[0]);
    float *sum = (float *)db__scratch(c, v.B * v.chunks * v.C * 2 * sizeof(float));
    float *fold = (float *)db__scratch(c, v.B * v.C * 5 * sizeof(float));
    float *total = (float *)db__scratch(c, v.B * v.C * 4 * sizeof(float));
    const float *ss = db__norm_scale_shift(db__kernels_for(ctx, x->dtype), c, &c->a[9]);
    float *dw = (float *)c->a[1].data, *dbias = (float *)c->a[2].data;
    size_t k, ch, sample = v.HW * v.C,
                  at_once = v.B < (size_t)db__threads(ctx) ? 1 : (size_t)db__threads(ctx);
    float *g = (float *)db__scratch(c, at_once * sample * sizeof(float));
    long b;
    if (c->measuring) return;
    DB__EACH_SAMPLE(ctx, b, v.B,
                    db__norm_back_sample(
                        ctx, c, &v, (size_t)b,
                        at_once > 1 ? g + (size_t)db__thread_index() * sample : g,
                        sum + (size_t)b * v.chunks * v.C * 2, fold + (size_t)b * v.C * 5,
                        total + (size_t)b * v.C * 4, ss))
    for (k = 0; k < v.B; k++) /* over the batch in order */
        for (ch = 0; ch < v.C; ch++) {
            if (dbias) dbias[ch] += total[k * v.C * 4 + ch];
            if (dw) dw[ch] += total[k * v.C * 4 + v.C + ch];
        }
}

/* Records a normalisation's gradient: of x, of its weight and bias, and (group norm) of
   scale_shift. */
static void db__group_norm_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), x = n->arg[2], w = n->arg[3], bias = n->arg[4],
              ss = n->arg[5], arg[10];
    db__node *made;
    int add = 0, add_ss = 0;
    if (dy.id < 0) return;
    arg[0] = db__needs_grad(t, x) ? db__grad_target(t, x, &add) : db_none;
    arg[1] = db__needs_grad(t, w) ? db__sum_target(t, w) : db_none;
    arg[2] = db__needs_grad(t, bias) ? db__sum_target(t, bias) : db_none;
    arg[3] = db__needs_grad(t, ss) ? db__grad_target(t, ss, &add_ss) : db_none;
    arg[4] = dy, arg[5] = x, arg[6] = n->arg[1], arg[7] = w, arg[8] = bias, arg[9] = ss;
    made = db__record(t, DB_OP_GROUP_NORM_DX, 10, arg);
    if (made) made->s[0] = n->s[0], made->i[0] = n->i[0], made->i[1] = add, made->i[2] = add_ss;
}

db_tensor db_group_norm(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, db_tensor scale_shift,
                        size_t groups, float eps, db_activation act)
{
    db_tensor arg[6], y;
    db__node *n;
    size_t C, dim[3];
    if (!db__given(t, x) || !db__given(t, w)) return db_none;
    C = x.dim[x.n_dims - 1];
    if (x.n_dims < 2 || db_count(w) != C)
        return db__shape_fail(t, "group_norm: input [B,...,C] and weight [C]", x, w);
    if (bias.id < 0 || db_count(bias) != C)
        return db__shape_fail(t, "group_norm: input [B,...,C] and bias [C]", x, bias);
    if (groups == 0 || C % groups) {
        db__fail(t->ctx, DB_ERROR_SHAPE,
                 "group_norm: %zu channels cannot be divided into %zu groups", C, groups);
        return db_none;
    }
    if (scale_shift.id >= 0 && db_count(scale_shift) != 2 * C * x.dim[0])
        return db__shape_fail(t, "group_norm: input and scale_shift [B,2C]", x, scale_shift);
    dim[0] = x.dim[0], dim[1] = groups, dim[2] = 3;
    arg[0] = y = db__activation(t, x.n_dims, x.dim);
    arg[1] = db__new_value(t, DB__ACTIVATION, DB_F32, 3, dim);
    arg[2] = x, arg[3] = w, arg[4] = bias, arg[5] = scale_shift;
    n = db__record(t, DB_OP_GROUP_NORM, 6, arg);
    if (!n) return db_none;
    n->s[0] = groups, n->i[0] = (int)act, n->f[0] = eps;
    db__inherit_grad(t, y, 4, arg + 2);
    return y;
}

/* ---- layer normalisation; RMS normalisation is the same without mean and bias (T5) ----------- */

/* a: y, stats [N,2], x, w, b.  i: rms.  f: eps */
static void db__cpu_layer_norm(db_ctx *ctx, db_call *c)
{
    const db_arg *x = &c->a[2];
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    size_t C = x->dim[x->n_dims - 1], N = db__arg_count(x) / C;
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)N; i++)
            kern->layer_norm(db__at(&c->a[0], (size_t)i * C), (float *)c->a[1].data + (size_t)i * 2,
                             db__at(x, (size_t)i * C), db__floats(&c->a[3]), db__floats(&c->a[4]),
                             C, c->f[0], c->i[0]);
    }
}

enum { DB__ROW_PARTS = 16 };

/* a: dx, dw, db, dy, x, stats, w.  i: rms, add */
static void db__cpu_layer_norm_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *dx = &c->a[0], *dy = &c->a[3], *x = &c->a[4];
    const db__kernels *kern = db__kernels_for(ctx, x->dtype);
    size_t C = x->dim[x->n_dims - 1], N = db__arg_count(x) / C,
           parts = DB__MIN(N, (size_t)DB__ROW_PARTS), p, ch;
    float *own = (float *)db__scratch(c, parts * C * 2 * sizeof(float));
    float *dw = (float *)c->a[1].data, *dbias = (float *)c->a[2].data;
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)parts; i++) {
            size_t r;
            float *part = own + (size_t)i * C * 2;
            memset(part, 0, C * 2 * sizeof(float));
            for (r = N * (size_t)i / parts; r < N * ((size_t)i + 1) / parts; r++)
                kern->layer_norm_back(dx->present ? db__at(dx, r * C) : NULL, dw ? part : NULL,
                                      dbias ? part + C : NULL, db__at(dy, r * C), db__at(x, r * C),
                                      db__floats(&c->a[5]) + r * 2, db__floats(&c->a[6]), C,
                                      c->i[0], c->i[1]);
        }
    }
    for (p = 0; p < parts; p++)
        for (ch = 0; ch < C; ch++) {
            if (dw) dw[ch] += own[p * C * 2 + ch];
            if (dbias) dbias[ch] += own[p * C * 2 + C + ch];
        }
}

static void db__layer_norm_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), x = n->arg[2], w = n->arg[3], bias = n->arg[4], arg[7];
    db__node *made;
    int add = 0;
    if (dy.id < 0) return;
    arg[0] = db__needs_grad(t, x) ? db__grad_target(t, x, &add) : db_none;
    arg[1] = db__needs_grad(t, w) ? db__sum_target(t, w) : db_none;
    arg[2] = db__needs_grad(t, bias) ? db__sum_target(t, bias) : db_none;
    arg[3] = dy, arg[4] = x, arg[5] = n->arg[1], arg[6] = w;
    made = db__record(t, DB_OP_LAYER_NORM_DX, 7, arg);
    if (made) made->i[0] = n->i[0], made->i[1] = add;
}

static db_tensor db__layer_norm(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, float eps,
                                int rms)
{
    db_tensor arg[5], y;
    db__node *n;
    size_t dim[2];
    if (!db__given(t, x) || !db__given(t, w)) return db_none;
    dim[1] = 2;
    dim[0] = db_count(x) / x.dim[x.n_dims - 1];
    if (db_count(w) != x.dim[x.n_dims - 1])
        return db__shape_fail(t, "layer_norm: input [...,C] and weight [C]", x, w);
    if (bias.id >= 0 && db_count(bias) != x.dim[x.n_dims - 1])
        return db__shape_fail(t, "layer_norm: input [...,C] and bias [C]", x, bias);
    arg[0] = y = db__activation(t, x.n_dims, x.dim);
    arg[1] = db__new_value(t, DB__ACTIVATION, DB_F32, 2, dim);
    arg[2] = x, arg[3] = w, arg[4] = bias;
    n = db__record(t, DB_OP_LAYER_NORM, 5, arg);
    if (!n) return db_none;
    n->i[0] = rms, n->f[0] = eps;
    db__inherit_grad(t, y, 3, arg + 2);
    return y;
}

db_tensor db_layer_norm(db_tape *t, db_tensor x, db_tensor w, db_tensor bias, float eps)
{
    return db__layer_norm(t, x, w, bias, eps, 0);
}
db_tensor db_rms_norm(db_tape *t, db_tensor x, db_tensor w, float eps)
{
    return db__layer_norm(t, x, w, db_none, eps, 1);
}

/* x / |x| = x / rms(x) / sqrt(C). A vector of zeros stays one. */
db_tensor db_unit_norm(db_tape *t, db_tensor x)
{
    size_t C;
    if (!db__given(t, x)) return db_none;
    C = x.dim[x.n_dims - 1];
    return db_rms_norm(t, x, db_constant(t, DB_F32, 1.0f / sqrtf((float)C), 1, &C), 1e-20f);
}

/* ---- elementwise: activation, product, weighted sum ------------------------------------------ */

enum { DB__PIECE = 16384 }; /* elements to a piece */

/* a: y, x.  i: act */
static void db__cpu_act(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t n = db__arg_count(&c->a[0]);
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            kern->act(db__at(&c->a[0], at), db__at(&c->a[1], at),
                      DB__MIN(n - at, (size_t)DB__PIECE), c->i[0]);
        }
    }
}

/* a: dx, dy, x.  i: act, add */
static void db__cpu_act_dx(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t n = db__arg_count(&c->a[0]);
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            kern->act_back(db__at(&c->a[0], at), db__at(&c->a[1], at), db__at(&c->a[2], at),
                           DB__MIN(n - at, (size_t)DB__PIECE), c->i[0], c->i[1]);
        }
    }
}

/* Of an activation and of a gate alike */
static void db__act_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[3];
    db__node *made;
    int add = 0;
    arg[1] = db_grad(t, n->arg[0]), arg[2] = n->arg[1];
    if (arg[1].id < 0 || !db__needs_grad(t, arg[2])) return;
    arg[0] = db__grad_target(t, arg[2], &add);
    made = db__record(t, n->op == DB_OP_GATE ? DB_OP_GATE_DX : DB_OP_ACT_DX, 3, arg);
    if (made) made->i[0] = n->i[0], made->i[1] = add;
}

static db_tensor db__record_act(db_tape *t, db_op op, db_tensor x, const size_t *dim,
                                db_activation act)
{
    db_tensor arg[2];
    db__node *n;
    arg[0] = db__activation(t, x.n_dims, dim), arg[1] = x;
    n = db__record(t, op, 2, arg);
    if (!n) return db_none;
    n->i[0] = (int)act;
    db__inherit_grad(t, arg[0], 1, arg + 1);
    return arg[0];
}

db_tensor db_activate(db_tape *t, db_tensor x, db_activation act)
{
    if (!db__given(t, x) || act == DB_ACT_NONE) return x;
    return db__record_act(t, DB_OP_ACT, x, x.dim, act);
}

/* a: y, x.  i: act */
static void db__cpu_gate(db_ctx *ctx, db_call *c)
{
    const db_arg *y = &c->a[0], *x = &c->a[1];
    const db__kernels *kern = db__kernels_for(ctx, y->dtype);
    size_t C = y->dim[y->n_dims - 1];
    long row;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (row = 0; row < (long)(db__arg_count(y) / C); row++)
            kern->gate(db__at(y, (size_t)row * C), db__at(x, (size_t)row * 2 * C), C, c->i[0]);
    }
}

/* a: dx, dy, x.  i: act, add */
static void db__cpu_gate_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *dx = &c->a[0], *dy = &c->a[1], *x = &c->a[2];
    const db__kernels *kern = db__kernels_for(ctx, dx->dtype);
    size_t C = dy->dim[dy->n_dims - 1];
    long row;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (row = 0; row < (long)(db__arg_count(dy) / C); row++)
            kern->gate_back(db__at(dx, (size_t)row * 2 * C), db__at(dy, (size_t)row * C),
                            db__at(x, (size_t)row * 2 * C), C, c->i[0], c->i[1]);
    }
}

db_tensor db_gate(db_tape *t, db_tensor x, db_activation act)
{
    size_t dim[4];
    if (t->ctx->result != DB_OK) return db_none;
    if (x.n_dims < 1 || x.dim[x.n_dims - 1] % 2) {
        char s[96];
        db__fail(t->ctx, DB_ERROR_SHAPE, "gate: the last dimension of %s is odd", db__shape(x, s));
        return db_none;
    }
    memcpy(dim, x.dim, sizeof dim);
    dim[x.n_dims - 1] /= 2;
    return db__record_act(t, DB_OP_GATE, x, dim, act);
}

/* a: y, a, b.  i: add */
static void db__cpu_mul(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t n = db__arg_count(&c->a[0]);
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            kern->mul(db__at(&c->a[0], at), db__at(&c->a[1], at), db__at(&c->a[2], at),
                      DB__MIN(n - at, (size_t)DB__PIECE), c->i[0]);
        }
    }
}

static void db__mul_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), arg[3];
    int k;
    if (dy.id < 0) return;
    for (k = 1; k <= 2; k++) {
        int add = 0;
        db__node *made;
        if (!db__needs_grad(t, n->arg[k])) continue;
        arg[0] = db__grad_target(t, n->arg[k], &add), arg[1] = dy, arg[2] = n->arg[3 - k];
        made = db__record(t, DB_OP_MUL, 3, arg);
        if (made) made->i[0] = add;
    }
}

db_tensor db_multiply(db_tape *t, db_tensor a, db_tensor b)
{
    db_tensor arg[3];
    if (!db__given(t, a) || !db__given(t, b)) return db_none;
    if (db_count(a) != db_count(b)) return db__shape_fail(t, "multiply", a, b);
    arg[0] = db__activation(t, a.n_dims, a.dim), arg[1] = a, arg[2] = b;
    if (!db__record(t, DB_OP_MUL, 3, arg)) return db_none;
    db__inherit_grad(t, arg[0], 2, arg + 1);
    return arg[0];
}

/* a: y, x, z.  f: alpha, beta.  i: add */
static void db__cpu_axpby(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t n = db__arg_count(&c->a[0]);
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            kern->axpby(db__at(&c->a[0], at), db__at(&c->a[1], at),
                        c->a[2].present ? db__at(&c->a[2], at) : NULL, c->f[0], c->f[1],
                        DB__MIN(n - at, (size_t)DB__PIECE), c->i[0]);
        }
    }
}

static void db__axpby_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), arg[2];
    int k;
    if (dy.id < 0) return;
    for (k = 2; k >= 1; k--) {
        int add = 0;
        db__node *made;
        if (!db__needs_grad(t, n->arg[k])) continue;
        arg[0] = db__grad_target(t, n->arg[k], &add), arg[1] = dy;
        made = db__record(t, DB_OP_AXPBY, 2, arg);
        if (made) made->f[0] = n->f[k - 1], made->i[0] = add;
    }
}

db_tensor db_weighted_sum(db_tape *t, float alpha, db_tensor x, float beta, db_tensor z)
{
    db_tensor arg[3];
    db__node *n;
    if (!db__given(t, x) || !db__computed(t, t->value[x.id].dtype)) return db_none;
    if (z.id >= 0 && db_count(x) != db_count(z)) return db__shape_fail(t, "weighted sum", x, z);
    arg[0] = db__new_value(t, DB__ACTIVATION, t->value[x.id].dtype, x.n_dims, x.dim), arg[1] = x,
    arg[2] = z;
    n = db__record(t, DB_OP_AXPBY, 3, arg);
    if (!n) return db_none;
    n->f[0] = alpha, n->f[1] = beta;
    db__inherit_grad(t, arg[0], 2, arg + 1);
    return arg[0];
}

/* a: y.  f: value */
static void db__cpu_fill(db_ctx *ctx, db_call *c)
{
    size_t n = db__arg_count(&c->a[0]);
    float value = c->f[0], *y = (float *)c->a[0].data;
    uint16_t half = db__f32_to_bf16(value), *y16 = (uint16_t *)c->a[0].data;
    int is_half = c->a[0].dtype == DB_BF16;
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE, end = DB__MIN(n, at + DB__PIECE);
            if (is_half) for (; at < end; at++) y16[at] = half;
            else for (; at < end; at++) y[at] = value;
        }
    }
}

db_tensor db_constant(db_tape *t, db_dtype dtype, float value, int n_dims, const size_t *dim)
{
    db_tensor y;
    db__node *n;
    if (!db__computed(t, dtype) || !db__rank_fits(t, n_dims)) return db_none;
    y = db__new_value(t, DB__ACTIVATION, dtype, n_dims, dim);
    n = db__record(t, DB_OP_FILL, 1, &y);
    if (!n) return db_none;
    n->f[0] = value;
    return y;
}

/* y[b,...] = p[b] x + q[b] z in f32: adding noise, and what a network is to predict.
   a: y, x, z, p [B], q [B] */
static void db__cpu_mix(db_ctx *ctx, db_call *c)
{
    size_t B = db__arg_count(&c->a[3]), n = db__arg_count(&c->a[0]) / B;
    long b;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (b = 0; b < (long)B; b++) {
            const float *x = db__floats(&c->a[1]) + (size_t)b * n,
                        *z = db__floats(&c->a[2]) + (size_t)b * n;
            float *y = (float *)c->a[0].data + (size_t)b * n, p = db__floats(&c->a[3])[b],
                  q = db__floats(&c->a[4])[b];
            ctx->isa->f32->axpby(y, x, z, p, q, n, 0);
        }
    }
}

db_tensor db_mix(db_tape *t, db_tensor p, db_tensor x, db_tensor q, db_tensor z)
{
    db_tensor arg[5];
    if (!db__given(t, p) || !db__given(t, x) || !db__given(t, q) || !db__given(t, z))
        return db_none;
    if (db_count(x) != db_count(z) || db_count(p) != x.dim[0] || db_count(q) != x.dim[0])
        return db__shape_fail(t, "mix", x, p);
    arg[0] = db__new_value(t, DB__ACTIVATION, DB_F32, x.n_dims, x.dim);
    arg[1] = x, arg[2] = z, arg[3] = p, arg[4] = q;
    return db__record(t, DB_OP_MIX, 5, arg) ? arg[0] : db_none;
}

/* Standard normal numbers. a: y.  i: purpose */
static void db__cpu_normal(db_ctx *ctx, db_call *c)
{
    size_t n = db__arg_count(&c->a[0]);
    long i;
    db_rng rng;
    rng.seed = c->seed, rng.purpose = (uint32_t)c->i[0], rng.step = c->step;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            db__fill_normal(&rng, at, DB__MIN(n - at, (size_t)DB__PIECE),
                            (float *)c->a[0].data + at);
        }
    }
}

db_tensor db_normal_like(db_tape *t, db_tensor x, uint32_t purpose)
{
    db__node *n;
    db_tensor y;
    if (!db__given(t, x)) return db_none;
    y = db__new_value(t, DB__ACTIVATION, DB_F32, x.n_dims, x.dim);
    n = db__record(t, DB_OP_NORMAL, 1, &y);
    if (!n) return db_none;
    n->i[0] = (int)purpose;
    return y;
}

/* ---- copies: concatenation, slices, change of data type -----------------------------------------
   dst[r * dst_stride + dst_offset + i] (+)= src[r * src_stride + src_offset + i], i < n, r < rows.
   a: dst, src.  s: rows, n, dst_stride, dst_offset, src_stride, src_offset.  i: add */
static void db__cpu_copy(db_ctx *ctx, db_call *c)
{
    const db_arg *dst = &c->a[0], *src = &c->a[1];
    const db__kernels *half = ctx->isa->bf16;
    size_t n = c->s[1];
    long r;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (r = 0; r < (long)c->s[0]; r++) {
            char *d = db__at(dst, (size_t)r * c->s[2] + c->s[3]);
            const char *s = db__at(src, (size_t)r * c->s[4] + c->s[5]);
            if (dst->dtype == src->dtype && !c->i[0]) memcpy(d, s, n * db_dtype_size(dst->dtype));
            else if (dst->dtype == src->dtype)
                db__kernels_for(ctx, dst->dtype)->axpby(d, s, NULL, 1, 0, n, 1);
            else if (dst->dtype == DB_BF16)
                half->from_f32(d, (const float *)(const void *)s, n, c->i[0]);
            else half->to_f32((float *)(void *)d, s, n, c->i[0]);
        }
    }
}

static void db__record_copy(db_tape *t, db_tensor dst, db_tensor src, size_t rows, size_t n,
                            size_t dst_stride, size_t dst_offset, size_t src_stride,
                            size_t src_offset, int add)
{
    db_tensor arg[2];
    db__node *node;
    arg[0] = dst, arg[1] = src;
    node = db__record(t, DB_OP_COPY, 2, arg);
    if (!node) return;
    node->s[0] = rows, node->s[1] = n, node->s[2] = dst_stride, node->s[3] = dst_offset,
    node->s[4] = src_stride, node->s[5] = src_offset;
    node->i[0] = add;
    if (!add) db__inherit_grad(t, dst, 1, arg + 1);
}

/* The gradient of a copy copies back. A slice leaves the rest of its source without a gradient, so
   the first piece to arrive clears the whole. */
static void db__copy_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), dx;
    int add = 0;
    if (dy.id < 0 || !db__needs_grad(t, n->arg[1])) return;
    dx = db__grad_target(t, n->arg[1], &add);
    if (!add && n->s[1] < n->s[4]) {
        db_tensor whole = n->arg[1];
        whole.id = dx.id;
        if (!db__record(t, DB_OP_FILL, 1, &whole)) return;
        add = 1;
    }
    db__record_copy(t, dx, dy, n->s[0], n->s[1], n->s[4], n->s[5], n->s[2], n->s[3], add);
}

db_tensor db_concat(db_tape *t, db_tensor a, db_tensor b, int axis)
{
    size_t outer = 1, na = 1, nb = 1, dim[4];
    db_tensor y;
    int d;
    if (!db__given(t, a) || !db__given(t, b)) return db_none;
    if (axis < 0 || axis >= a.n_dims) return db__shape_fail(t, "concat: no such axis", a, b);
    for (d = 0; d < a.n_dims; d++) {
        if (a.n_dims != b.n_dims || (d != axis && a.dim[d] != b.dim[d]))
            return db__shape_fail(t, "concat", a, b);
        if (d < axis) outer *= a.dim[d];
        else na *= a.dim[d], nb *= b.dim[d];
    }
    memcpy(dim, a.dim, sizeof dim);
    dim[axis] = a.dim[axis] + b.dim[axis];
    y = db__activation(t, a.n_dims, dim);
    if (y.id < 0) return y;
    db__record_copy(t, y, a, outer, na, na + nb, 0, na, 0, 0);
    db__record_copy(t, y, b, outer, nb, na + nb, na, nb, 0, 0);
    return t->ctx->result == DB_OK ? y : db_none;
}

db_tensor db_slice(db_tape *t, db_tensor x, size_t first, size_t count)
{
    db_tensor y;
    size_t C, dim[4];
    if (!db__given(t, x)) return db_none;
    C = x.dim[x.n_dims - 1];
    memcpy(dim, x.dim, sizeof dim);
    dim[x.n_dims - 1] = count;
    y = db__activation(t, x.n_dims, dim);
    if (y.id < 0) return y;
    if (count > C || first > C - count) return db__shape_fail(t, "slice", x, y);
    db__record_copy(t, y, x, db_count(x) / C, count, count, 0, C, first, 0);
    return t->ctx->result == DB_OK ? y : db_none;
}

db_tensor db_cast(db_tape *t, db_tensor x, db_dtype dtype)
{
    db_tensor y;
    size_t rows, n;
    if (!db__given(t, x)) return db_none;
    if (t->value[x.id].dtype == dtype) return x;
    if (!db__computed(t, dtype)) return db_none;
    y = db__new_value(t, DB__ACTIVATION, dtype, x.n_dims, x.dim);
    if (y.id < 0) return y;
    n = x.dim[x.n_dims - 1], rows = db_count(x) / n;
    db__record_copy(t, y, x, rows, n, n, 0, n, 0, 0);
    return t->ctx->result == DB_OK ? y : db_none;
}

/* ---- resampling ------------------------------------------------------------------------------ */

static float db__read(const db__kernels *kern, const db_arg *a, size_t index)
{
    float x;
    if (a->dtype == DB_F32) return db__floats(a)[index];
    kern->to_f32(&x, db__at(a, index), 1, 0);
    return x;
}

/* y (+)= scale x (sum over 2 x 2). a: y [B,H,W,C], x [B,2H,2W,C] or, as the gradient of an odd
   image, one row or column less, then 0.  f: scale.  i: add */
static void db__cpu_pool2(db_ctx *ctx, db_call *c)
{
    const db_arg *y = &c->a[0], *x = &c->a[1];
    const db__kernels *kern = db__kernels_for(ctx, y->dtype);
    size_t H = y->dim[1], W = y->dim[2], C = y->dim[3], IW = x->dim[2], IH = x->dim[1];
    char *zero = (char *)db__scratch(c, C * kern->size);
    long r;
    if (c->measuring) return;
    memset(zero, 0, C * kern->size);
    {
        DB__PARALLEL_FOR(ctx, static)
        for (r = 0; r < (long)(y->dim[0] * H); r++) {
            size_t b = (size_t)r / H, row = (size_t)r % H, j;
            int below = 2 * row + 1 < IH;
            for (j = 0; j < W; j++) {
                size_t at = ((b * IH + 2 * row) * IW + 2 * j) * C;
                int right = 2 * j + 1 < IW;
                kern->pool(db__at(y, ((size_t)r * W + j) * C), db__at(x, at),
                           right ? db__at(x, at + C) : zero, below ? db__at(x, at + IW * C) : zero,
                           below && right ? db__at(x, at + IW * C + C) : zero, c->f[0], C, c->i[0]);
            }
        }
    }
}

/* y (+)= scale x (the nearest pixel). a: y [B,2H,2W,C] or one row or column less, x [B,H,W,C].
   f: scale.  i: add */
static void db__cpu_up2(db_ctx *ctx, db_call *c)
{
    const db_arg *y = &c->a[0], *x = &c->a[1];
    const db__kernels *kern = db__kernels_for(ctx, y->dtype);
    size_t H = y->dim[1], W = y->dim[2], C = y->dim[3];
    long r;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (r = 0; r < (long)(y->dim[0] * H); r++) {
            size_t b = (size_t)r / H, row = (size_t)r % H, j;
            for (j = 0; j < W; j++) {
                const char *s = db__at(x, ((b * x->dim[1] + row / 2) * x->dim[2] + j / 2) * C);
                if (c->f[0] == 1.0f && !c->i[0])
                    memcpy(db__at(y, ((size_t)r * W + j) * C), s, C * kern->size);
                else
                    kern->axpby(db__at(y, ((size_t)r * W + j) * C), s, NULL, c->f[0], 0, C,
                                c->i[0]);
            }
        }
    }
}

static db_tensor db__resample(db_tape *t, db_op op, db_tensor x, size_t H, size_t W, float scale)
{
    db_tensor arg[2];
    db__node *n;
    size_t dim[4];
    if (!db__given(t, x)) return db_none;
    dim[0] = x.dim[0], dim[1] = H, dim[2] = W, dim[3] = x.dim[3];
    arg[0] = db__activation(t, 4, dim), arg[1] = x;
    n = db__record(t, op, 2, arg);
    if (!n) return db_none;
    n->f[0] = scale;
    db__inherit_grad(t, arg[0], 1, arg + 1);
    return arg[0];
}

db_tensor db_avg_pool2(db_tape *t, db_tensor x)
{
    if (x.id >= 0 && (x.dim[1] % 2 || x.dim[2] % 2))
        return db__shape_fail(t, "avg_pool2 takes even sizes", x, x);
    return db__resample(t, DB_OP_POOL2, x, x.dim[1] / 2, x.dim[2] / 2, 0.25f);
}

db_tensor db_upsample2(db_tape *t, db_tensor x, size_t H, size_t W)
{
    if (x.id >= 0 && ((H + 1) / 2 != x.dim[1] || (W + 1) / 2 != x.dim[2])) {
        db_tensor y = x;
        y.dim[1] = H, y.dim[2] = W;
        return db__shape_fail(t, "upsample2 to", y, x);
    }
    return db__resample(t, DB_OP_UP2, x, H, W, 1.0f);
}

/* Each is the transpose of the other. */
static void db__resample_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[2];
    db__node *made;
    int add = 0;
    arg[1] = db_grad(t, n->arg[0]);
    if (arg[1].id < 0 || !db__needs_grad(t, n->arg[1])) return;
    arg[0] = db__grad_target(t, n->arg[1], &add);
    made = db__record(t, n->op == DB_OP_POOL2 ? DB_OP_UP2 : DB_OP_POOL2, 2, arg);
    if (made) made->f[0] = n->f[0], made->i[0] = add;
}

/* y = the largest of each k x k window of x. a: y [B,OH,OW,C], x [B,H,W,C].  s: k, stride */
static void db__cpu_max_pool(db_ctx *ctx, db_call *c)
{
    const db_arg *y = &c->a[0], *x = &c->a[1];
    const db__kernels *kern = db__kernels_for(ctx, y->dtype);
    size_t OH = y->dim[1], OW = y->dim[2], C = y->dim[3], H = x->dim[1], W = x->dim[2];
    long r;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (r = 0; r < (long)(y->dim[0] * OH * OW); r++) {
            size_t b = (size_t)r / (OH * OW), oy = (size_t)r / OW % OH, ox = (size_t)r % OW, ch, i;
            size_t corner = ((b * H + oy * c->s[1]) * W + ox * c->s[1]) * C;
            for (ch = 0; ch < C; ch++) {
                float most = -HUGE_VALF;
                for (i = 0; i < c->s[0] * c->s[0]; i++) {
                    float v = db__read(kern, x, corner + (i / c->s[0] * W + i % c->s[0]) * C + ch);
                    if (v > most || v != v) most = v;
                }
                kern->from_f32(db__at(y, (size_t)r * C + ch), &most, 1, 0);
            }
        }
    }
}

/* The gradient goes to the first of the largest, as in PyTorch; windows overlap: one task a sample.
   a: dx, dy, x, y.  s: k, stride */
static void db__cpu_max_pool_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *dx = &c->a[0], *dy = &c->a[1], *x = &c->a[2], *y = &c->a[3];
    const db__kernels *kern = db__kernels_for(ctx, y->dtype);
    size_t P = y->dim[1] * y->dim[2], OW = y->dim[2], C = y->dim[3], H = x->dim[1], W = x->dim[2];
    long b;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (b = 0; b < (long)y->dim[0]; b++) {
            size_t p, ch, i;
            for (p = 0; p < P; p++)
                for (ch = 0; ch < C; ch++) {
                    size_t from = ((size_t)b * P + p) * C + ch, iy = p / OW * c->s[1];
                    size_t corner = (((size_t)b * H + iy) * W + p % OW * c->s[1]) * C + ch;
                    float g = db__read(kern, dy, from), most = db__read(kern, y, from);
                    for (i = 0; i < c->s[0] * c->s[0]; i++) {
                        size_t at = corner + (i / c->s[0] * W + i % c->s[0]) * C;
                        if (db__read(kern, x, at) < most) continue;
                        kern->from_f32(db__at(dx, at), &g, 1, 1);
                        break;
                    }
                }
        }
    }
}

static void db__max_pool_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[4];
    db__node *made;
    arg[1] = db_grad(t, n->arg[0]), arg[2] = n->arg[1], arg[3] = n->arg[0];
    if (arg[1].id < 0 || !db__needs_grad(t, arg[2])) return;
    arg[0] = db__sum_target(t, arg[2]);
    made = db__record(t, DB_OP_MAX_POOL_DX, 4, arg);
    if (made) memcpy(made->s, n->s, sizeof made->s);
}

db_tensor db_max_pool(db_tape *t, db_tensor x, size_t k, size_t stride)
{
    db_tensor arg[2];
    db__node *n;
    size_t dim[4];
    if (t->ctx->result != DB_OK) return db_none;
    if (x.n_dims != 4 || x.dim[1] < k || x.dim[2] < k || !k || !stride) {
        char s[96];
        db__fail(t->ctx, DB_ERROR_SHAPE,
                 "max_pool: %s is no image [B,H,W,C] as large as the window of %zu x %zu pixels, "
                 "or that or its stride, %zu, is 0",
                 db__shape(x, s), k, k, stride);
        return db_none;
    }
    dim[0] = x.dim[0], dim[3] = x.dim[3];
    dim[1] = (x.dim[1] - k) / stride + 1, dim[2] = (x.dim[2] - k) / stride + 1;
    arg[0] = db__activation(t, 4, dim), arg[1] = x;
    n = db__record(t, DB_OP_MAX_POOL, 2, arg);
    if (!n) return db_none;
    n->s[0] = k, n->s[1] = stride;
    db__inherit_grad(t, arg[0], 1, arg + 1);
    return arg[0];
}

/* ---- attention ----------------------------------------------------------------------------------
   o = softmax(scale q k^T + bias + mask) v per head; q [B,T,C], k and v [B,S,C], heads side by side
   in C. A block of 64 queries meets 512 keys at a time, so that their scores stay in the second
   cache; the T x S matrix is never stored. Forward, a row's exponentials are taken against the
   largest score so far, and what was summed before shrinks when that grows (Milakov and
   Gimelshein, arXiv 1805.02867). The backward pass computes the probabilities again from the stored
   logarithms of the sums. */

enum { DB__QUERIES = 64, DB__KEYS = 512 };

typedef struct db__attn {
    size_t B, T, S, C, HS, heads;
    size_t Kp, Sp, Sc, Hc; /* padded: HS as K, S as K, S and HS as columns                */
    size_t mb, mp, ld;     /* queries of a block, the same as K; from row to row of scores */
    size_t key_bytes, value_bytes, q_bytes, p_bytes, s_bytes, sum_bytes; /* a thread's scratch  */
    size_t t_bytes, b_bytes, d_bytes; /* the gradient's besides: turned, queries as B, dK or dV */
} db__attn;

static db__attn db__attn_of(const db__kernels *kern, const db_arg *q, const db_arg *k, size_t heads)
{
    db__attn v;
    size_t size = kern->size;
    v.B = q->dim[0], v.T = q->dim[1], v.C = q->dim[2], v.S = k->dim[1];
    v.heads = heads, v.HS = v.C / heads;
    v.Kp = DB__ROUND_UP(v.HS, kern->k_multiple);
    v.Sp = DB__ROUND_UP(v.S, kern->k_multiple);
    v.Sc = DB__ROUND_UP(v.S, 16);
    v.Hc = DB__ROUND_UP(v.HS, 16);
    v.mb = DB__MIN(v.T, (size_t)DB__QUERIES);
    v.mp = DB__ROUND_UP(v.mb, kern->k_multiple);
    /* so that a power of two of keys does not give rows that share few places of the first cache */
    v.ld = DB__MIN(DB__MAX(v.Sp, v.Sc), (size_t)DB__KEYS) + 32;
    v.key_bytes = DB__ROUND_UP(v.Sc * v.Kp * size, DB__ALIGN);
    v.value_bytes = DB__ROUND_UP(v.Hc * v.Sp * size, DB__ALIGN);
    v.q_bytes = DB__ROUND_UP(v.mb * v.Kp * size, DB__ALIGN);
    v.p_bytes = DB__ROUND_UP(v.mb * v.ld * size, DB__ALIGN);
    v.t_bytes = DB__ROUND_UP(v.ld * v.mp * size, DB__ALIGN);
    v.b_bytes = DB__ROUND_UP(v.Hc * v.mp * size, DB__ALIGN);
    v.s_bytes = DB__ROUND_UP(v.mb * v.ld * sizeof(float), DB__ALIGN);
    v.sum_bytes = DB__ROUND_UP(v.mb * v.Hc * sizeof(float), DB__ALIGN);
    v.d_bytes = DB__ROUND_UP(v.S * v.Hc * sizeof(float), DB__ALIGN);
    return v;
}

/* Rows of one head padded to Kp, for use as A. */
static void db__head_rows(const db__kernels *kern, const db__attn *v, char *out, const db_arg *x,
                          size_t at, size_t rows)
{
    size_t r;
    for (r = 0; r < rows; r++) {
        memcpy(out + r * v->Kp * kern->size, db__at(x, at + r * v->C), v->HS * kern->size);
        memset(out + (r * v->Kp + v->HS) * kern->size, 0, (v->Kp - v->HS) * kern->size);
    }
}

/* C [m][n] (+)= A [m][k] B, n a multiple of 16; B's panels b_panel apart. */
static void db__product(const db__kernels *kern, float *c, size_t ldc, const void *a, size_t lda,
                        const void *b, size_t b_panel, size_t m, size_t k, size_t n, int add)
{
    db__gemm g;
    memset(&g, 0, sizeof g);
    g.m = m, g.k = k, g.taps = 1, g.panels = n / 16;
    g.a = a, g.lda = lda, g.a_k = 1, g.b = b, g.b_panel = b_panel, g.b_k = 16;
    g.c = c, g.ldc = g.lds = ldc, g.start = add ? c : NULL;
    kern->gemm(&g);
}

/* Of the keys from j0 on, how many the query sees. */
static size_t db__keys_seen(const db__attn *v, const db_call *c, size_t query, size_t j0)
{
    size_t end = c->i[0] ? DB__MIN(query + 1, v->S) : v->S;
    return end <= j0 ? 0 : DB__MIN(end - j0, (size_t)DB__KEYS);
}

/* One head of one sample. Its keys (B, HS as K: [Sc/16][Kp][16]) and values (B, keys as K:
   [Hc/16][Sp][16]) are packed once; queries come in blocks, and for each the keys in blocks, with a
   running maximum. */
static void db__attention_head(const db__kernels *kern, const db_call *c, const db__attn *v,
                               size_t b, size_t h, char *own)
{
    const db_arg *o = &c->a[0], *q = &c->a[2], *k = &c->a[3], *val = &c->a[4], *bias = &c->a[5],
                 *mask = &c->a[6];
    size_t size = kern->size, q0, j0, r, i;
    char *keys = own, *values = keys + v->key_bytes, *qs = values + v->value_bytes,
         *p = qs + v->q_bytes;
    float *s = (float *)(void *)(p + v->p_bytes),
          *sums = (float *)(void *)((char *)s + v->s_bytes); /* of p v */
    float max[DB__QUERIES], sum[DB__QUERIES];
    kern->pack(keys, v->Kp * 16, db__at(k, b * v->S * v->C + h * v->HS), v->HS, v->S, 1, v->C,
               v->Kp);
    kern->pack(values, v->Sp * 16, db__at(val, b * v->S * v->C + h * v->HS), v->S, v->HS, v->C, 1,
               v->Sp);
    for (q0 = 0; q0 < v->T; q0 += v->mb) {
        size_t m = DB__MIN(v->mb, v->T - q0), at = (b * v->T + q0) * v->C + h * v->HS;
        float *lse = (float *)c->a[1].data + (b * v->heads + h) * v->T + q0;
        db__head_rows(kern, v, qs, q, at, m);
        for (r = 0; r < m; r++) max[r] = -3.0e38f, sum[r] = 0;
        for (j0 = 0; j0 < v->S && db__keys_seen(v, c, q0 + m - 1, j0); j0 += DB__KEYS) {
            size_t columns = DB__MIN(v->Sc - j0, (size_t)DB__KEYS),
                   n_padded = DB__MIN(v->Sp - j0, (size_t)DB__KEYS);
            db__product(kern, s, v->ld, qs, v->Kp, keys + j0 * v->Kp * size, v->Kp * 16, m,
                        v->Kp, columns, 0);
            for (r = 0; r < m; r++) {
                float grown = kern->softmax(
                    p + r * v->ld * size, s + r * v->ld,
                    bias->present ? db__floats(bias) + (h * v->T + q0 + r) * v->S + j0 : NULL,
                    mask->present ? db__floats(mask) + b * v->S + j0 : NULL,
                    db__keys_seen(v, c, q0 + r, j0), n_padded, c->f[0], &max[r], &sum[r]);
                if (j0 > 0 && grown < 1)
                    for (i = 0; i < v->Hc; i++) sums[r * v->Hc + i] *= grown;
            }
            db__product(kern, sums, v->Hc, p, v->ld, values + j0 * 16 * size, v->Sp * 16, m,
                        n_padded, v->Hc, j0 > 0);
        }
        for (r = 0; r < m; r++) {
            float share = 1 / sum[r];
            lse[r] = max[r] + logf(sum[r]);
            for (i = 0; i < v->Hc; i++) sums[r * v->Hc + i] *= share;
        }
        kern->epilogue(db__at(o, at), v->C, sums, v->Hc, NULL, NULL, m, v->HS, 0);
    }
}

/* a: o, lse [B,heads,T], q, k, v, bias [heads,T,S], mask [B,S].  s: heads.  i: causal.  f: scale */
static void db__cpu_attention(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    const db__attn v = db__attn_of(kern, &c->a[2], &c->a[3], c->s[0]);
    size_t thread_bytes =
        v.key_bytes + v.value_bytes + v.q_bytes + v.p_bytes + v.s_bytes + v.sum_bytes;
    char *own = (char *)db__scratch(c, thread_bytes * (size_t)db__threads(ctx));
    long task;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)(v.B * v.heads); task++)
            db__attention_head(kern, c, &v, (size_t)task / v.heads, (size_t)task % v.heads,
                               own + thread_bytes * (size_t)db__thread_index());
    }
}

/* The gradient of one head of one sample.
   B, HS as K: keys, values [Sc/16][Kp][16].  B, keys as K: key_cols [Hc/16][Sp][16].
   A: q_rows, do_rows [mb][Kp].  B, queries as K: q_cols, do_cols [Hc/16][mp][16].
   Of a block of queries and one of keys: s, dp (f32), p, ds [mb][ld]; turned [keys][mp] = p^T, then
   ds^T. */
static void db__attention_head_back(const db__kernels *kern, const db_call *c, const db__attn *v,
                                    size_t b, size_t h, char *own)
{
    const db_arg *dq = &c->a[0], *dk = &c->a[1], *dv = &c->a[2], *dbias = &c->a[3],
                 *dout = &c->a[4], *o = &c->a[5];
    const db_arg *q = &c->a[7], *k = &c->a[8], *val = &c->a[9], *bias = &c->a[10],
                 *mask = &c->a[11];
    char *keys = own, *values = keys + v->key_bytes, *key_cols = values + v->key_bytes;
    char *q_rows = key_cols + v->value_bytes, *do_rows = q_rows + v->q_bytes;
    char *p = do_rows + v->q_bytes, *ds = p + v->p_bytes, *turned = ds + v->p_bytes;
    char *q_cols = turned + v->t_bytes, *do_cols = q_cols + v->b_bytes;
    float *s = (float *)(void *)(do_cols + v->b_bytes),
          *dp = (float *)(void *)((char *)s + v->s_bytes),
          *dq_acc = (float *)(void *)((char *)dp + v->s_bytes);
    float *dk_acc = (float *)(void *)((char *)dq_acc + v->sum_bytes),
          *dv_acc = (float *)(void *)((char *)dk_acc + v->d_bytes);
    float delta[DB__QUERIES];
    size_t size = kern->size, kv = b * v->S * v->C + h * v->HS, q0, j0, r, i;
    kern->pack(keys, v->Kp * 16, db__at(k, kv), v->HS, v->S, 1, v->C, v->Kp);
    kern->pack(values, v->Kp * 16, db__at(val, kv), v->HS, v->S, 1, v->C, v->Kp);
    kern->pack(key_cols, v->Sp * 16, db__at(k, kv), v->S, v->HS, v->C, 1, v->Sp);
    memset(dk_acc, 0, 2 * v->d_bytes);
    for (q0 = 0; q0 < v->T; q0 += v->mb) {
        size_t m = DB__MIN(v->mb, v->T - q0), at = (b * v->T + q0) * v->C + h * v->HS;
        const float *lse = db__floats(&c->a[6]) + (b * v->heads + h) * v->T + q0;
        db__head_rows(kern, v, q_rows, q, at, m);
        db__head_rows(kern, v, do_rows, dout, at, m);
        kern->pack(q_cols, v->mp * 16, db__at(q, at), m, v->HS, v->C, 1, v->mp);
        kern->pack(do_cols, v->mp * 16, db__at(dout, at), m, v->HS, v->C, 1, v->mp);
        for (r = 0; r < m; r++)
            delta[r] =
                kern->dot(db__at(dout, at + r * v->C), db__at(o, at + r * v->C), v->HS);
        for (j0 = 0; j0 < v->S && db__keys_seen(v, c, q0 + m - 1, j0); j0 += DB__KEYS) {
            size_t columns = DB__MIN(v->Sc - j0, (size_t)DB__KEYS),
                   n_padded = DB__MIN(v->Sp - j0, (size_t)DB__KEYS),
                   n = DB__MIN(v->S - j0, (size_t)DB__KEYS);
            /* S = Q K^T, dP = dO V^T */
            db__product(kern, s, v->ld, q_rows, v->Kp, keys + j0 * v->Kp * size, v->Kp * 16,
                        m, v->Kp, columns, 0);
            db__product(kern, dp, v->ld, do_rows, v->Kp, values + j0 * v->Kp * size,
                        v->Kp * 16, m, v->Kp, columns, 0);
            for (r = 0; r < m; r++) {
                size_t seen = db__keys_seen(v, c, q0 + r, j0),
                       pair = (h * v->T + q0 + r) * v->S + j0;
                char *ds_row = ds + r * v->ld * size;
                kern->softmax_back(p + r * v->ld * size, ds_row, s + r * v->ld,
                                   dp + r * v->ld,
                                   bias->present ? db__floats(bias) + pair : NULL,
                                   mask->present ? db__floats(mask) + b * v->S + j0
                                                 : NULL,
                                   lse[r], delta[r], seen, n_padded, c->f[0]);
                if (dbias->present)
                    kern->to_f32((float *)dbias->data + pair, ds_row, seen, 1);
            }
            /* dV += P^T dO, dK += dS^T Q, dQ += dS K */
            kern->transpose(turned, v->mp, p, v->ld, m, n, v->mp);
            db__product(kern, dv_acc + j0 * v->Hc, v->Hc, turned, v->mp, do_cols,
                        v->mp * 16, n, v->mp, v->Hc, 1);
            kern->transpose(turned, v->mp, ds, v->ld, m, n, v->mp);
            db__product(kern, dk_acc + j0 * v->Hc, v->Hc, turned, v->mp, q_cols, v->mp * 16,
                        n, v->mp, v->Hc, 1);
            db__product(kern, dq_acc, v->Hc, ds, v->ld, key_cols + j0 * 16 * size,
                        v->Sp * 16, m, n_padded, v->Hc, j0 > 0);
        }
        for (i = 0; i < m * v->Hc; i++) dq_acc[i] *= c->f[0];
        if (dq->present)
            kern->epilogue(db__at(dq, at), v->C, dq_acc, v->Hc, NULL, NULL, m, v->HS,
                           c->i[1]);
    }
    for (i = 0; i < v->S * v->Hc; i++) dk_acc[i] *= c->f[0];
    if (dk->present)
        kern->epilogue(db__at(dk, kv), v->C, dk_acc, v->Hc, NULL, NULL, v->S, v->HS,
                       c->i[2]);
    if (dv->present)
        kern->epilogue(db__at(dv, kv), v->C, dv_acc, v->Hc, NULL, NULL, v->S, v->HS,
                       c->i[3]);
}

/* a: dq, dk, dv, dbias, do, o, lse, q, k, v, bias, mask.  s: heads.  i: causal, add q, add k, add
   v.  f: scale */
static void db__cpu_attention_dx(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[5].dtype);
    const db__attn v = db__attn_of(kern, &c->a[7], &c->a[8], c->s[0]);
    size_t thread_bytes = 2 * v.key_bytes + v.value_bytes + 2 * v.q_bytes + 2 * v.p_bytes +
        v.t_bytes + 2 * v.b_bytes + 2 * v.s_bytes + v.sum_bytes + 2 * v.d_bytes;
    char *own = (char *)db__scratch(c, thread_bytes * (size_t)db__threads(ctx));
    size_t inner =
        c->a[3].present ? v.B : 1; /* the batch shares dbias: one task adds it up in order */
    long task;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, dynamic)
        for (task = 0; task < (long)(v.B * v.heads / inner); task++) {
            size_t step;
            for (step = 0; step < inner; step++)
                db__attention_head_back(kern, c, &v, (size_t)task / v.heads + step,
                                        (size_t)task % v.heads,
                                        own + thread_bytes * (size_t)db__thread_index());
        }
    }
}

static void db__attention_backward(db_tape *t, const db__node *n)
{
    db_tensor dout = db_grad(t, n->arg[0]), arg[12];
    db__node *made;
    int k, add[3] = {0, 0, 0};
    if (dout.id < 0) return;
    for (k = 0; k < 3; k++)
        arg[k] =
            db__needs_grad(t, n->arg[2 + k]) ? db__grad_target(t, n->arg[2 + k], &add[k]) : db_none;
    arg[3] = db__needs_grad(t, n->arg[5]) ? db__sum_target(t, n->arg[5]) : db_none;
    arg[4] = dout, arg[5] = n->arg[0], arg[6] = n->arg[1], arg[7] = n->arg[2], arg[8] = n->arg[3],
    arg[9] = n->arg[4];
    arg[10] = n->arg[5], arg[11] = n->arg[6];
    made = db__record(t, DB_OP_ATTENTION_DX, 12, arg);
    if (!made) return;
    made->s[0] = n->s[0], made->f[0] = n->f[0], made->i[0] = n->i[0];
    for (k = 0; k < 3; k++) made->i[1 + k] = add[k];
}

db_tensor db_attention(db_tape *t, db_tensor q, db_tensor k, db_tensor v, db_tensor bias,
                       db_tensor mask, size_t heads, float scale, int causal)
{
    db_tensor arg[7];
    db__node *n;
    size_t dim[3];
    if (!db__given(t, v)) return db_none;
    if (q.n_dims != 3 || k.n_dims != 3 || q.dim[2] != k.dim[2] || q.dim[0] != k.dim[0] ||
        heads == 0 || q.dim[2] % heads)
        return db__shape_fail(t, "attention: q [B,T,C] and k [B,S,C]", q, k);
    if (db_count(k) != db_count(v)) return db__shape_fail(t, "attention: k and v", k, v);
    if (bias.id >= 0 && db_count(bias) != heads * q.dim[1] * k.dim[1])
        return db__shape_fail(t, "attention: q and bias [heads,T,S]", q, bias);
    if (mask.id >= 0 && db_count(mask) != k.dim[0] * k.dim[1])
        return db__shape_fail(t, "attention: k and mask [B,S]", k, mask);
    dim[0] = q.dim[0], dim[1] = heads, dim[2] = q.dim[1];
    arg[0] = db__activation(t, 3, q.dim);
    arg[1] = db__new_value(t, DB__ACTIVATION, DB_F32, 3, dim);
    arg[2] = q, arg[3] = k, arg[4] = v, arg[5] = bias, arg[6] = mask;
    n = db__record(t, DB_OP_ATTENTION, 7, arg);
    if (!n) return db_none;
    n->s[0] = heads, n->i[0] = causal, n->f[0] = scale;
    db__inherit_grad(t, arg[0], 4, arg + 2);
    return arg[0];
}

/* ---- embeddings ------------------------------------------------------------------------------ */

/* a: y [N,C], ids [N], table [V,C] */
static void db__cpu_embedding(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t C = c->a[2].dim[1], N = db__arg_count(&c->a[1]);
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)N; i++) {
            size_t id = (size_t)((const int32_t *)c->a[1].data)[i];
            id = DB__MIN(id, c->a[2].dim[0] - 1);
            kern->from_f32(db__at(&c->a[0], (size_t)i * C), db__floats(&c->a[2]) + id * C, C, 0);
        }
    }
}

/* a: dtable, ids, dy.  Ids repeat, so the rows are added one after the other. */
static void db__cpu_embedding_dw(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[2].dtype);
    size_t C = c->a[0].dim[1], N = db__arg_count(&c->a[1]), i;
    if (c->measuring) return;
    for (i = 0; i < N; i++) {
        size_t id = (size_t)((const int32_t *)c->a[1].data)[i];
        id = DB__MIN(id, c->a[0].dim[0] - 1);
        kern->to_f32((float *)c->a[0].data + id * C, db__at(&c->a[2], i * C), C, 1);
    }
}

static void db__embedding_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[3];
    arg[2] = db_grad(t, n->arg[0]);
    if (arg[2].id < 0 || !db__needs_grad(t, n->arg[2])) return;
    arg[0] = db__sum_target(t, n->arg[2]), arg[1] = n->arg[1];
    db__record(t, DB_OP_EMBEDDING_DW, 3, arg);
}

db_tensor db_embedding(db_tape *t, db_tensor ids, db_tensor table)
{
    db_tensor arg[3];
    size_t dim[3];
    if (t->ctx->result != DB_OK) return db_none;
    if (ids.n_dims != 2 || table.n_dims != 2)
        return db__shape_fail(t, "embedding: ids [B,T] and table [V,C]", ids, table);
    dim[0] = ids.dim[0], dim[1] = ids.dim[1], dim[2] = table.dim[1];
    arg[0] = db__activation(t, 3, dim), arg[1] = ids, arg[2] = table;
    if (!db__record(t, DB_OP_EMBEDDING, 3, arg)) return db_none;
    db__inherit_grad(t, arg[0], 1, arg + 2);
    return arg[0];
}

/* y[n,:] = x[n,:] + p[n % R,:]: learned positions. a: y [N,C], x, p [R,C] */
static void db__cpu_add_rows(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t C = c->a[2].dim[c->a[2].n_dims - 1], R = db__arg_count(&c->a[2]) / C,
           N = db__arg_count(&c->a[0]) / C;
    long i;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)N; i++)
            kern->epilogue(db__at(&c->a[0], (size_t)i * C), C,
                           db__floats(&c->a[2]) + (size_t)i % R * C, C, NULL,
                           db__at(&c->a[1], (size_t)i * C), 1, C, 0);
    }
}

/* a: dp, dy */
static void db__cpu_add_rows_dw(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[1].dtype);
    size_t C = c->a[0].dim[c->a[0].n_dims - 1], R = db__arg_count(&c->a[0]) / C,
           N = db__arg_count(&c->a[1]) / C, i;
    if (c->measuring) return;
    for (i = 0; i < N; i++)
        kern->to_f32((float *)c->a[0].data + i % R * C, db__at(&c->a[1], i * C), C, 1);
}

static void db__add_rows_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[2];
    arg[1] = db_grad(t, n->arg[0]);
    if (arg[1].id < 0) return;
    if (db__needs_grad(t, n->arg[2])) {
        arg[0] = db__sum_target(t, n->arg[2]);
        db__record(t, DB_OP_ADD_ROWS_DW, 2, arg);
    }
    db__grad_pass(t, n->arg[1], arg[1]);
}

db_tensor db_add_rows(db_tape *t, db_tensor x, db_tensor rows)
{
    db_tensor arg[3];
    if (!db__given(t, x) || !db__given(t, rows)) return db_none;
    if (x.dim[x.n_dims - 1] != rows.dim[rows.n_dims - 1] || db_count(x) % db_count(rows))
        return db__shape_fail(t, "add_rows: x [...,C] and rows [R,C]", x, rows);
    arg[0] = db__activation(t, x.n_dims, x.dim), arg[1] = x, arg[2] = rows;
    if (!db__record(t, DB_OP_ADD_ROWS, 3, arg)) return db_none;
    db__inherit_grad(t, arg[0], 2, arg + 1);
    return arg[0];
}

/* y[b,...,:] = x[b,...,:] + e[b,:]: the same for every pixel of a sample. a: y [B,...,C], x, e
   [B,C] */
enum { DB__EACH_ROWS = 64 }; /* to one piece of work */

static void db__cpu_add_each(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t B = c->a[2].dim[0], C = c->a[2].dim[1], P = db__arg_count(&c->a[0]) / B / C,
           pieces = DB__CEIL_DIV(P, DB__EACH_ROWS);
    float *e = (float *)db__scratch(c, B * C * sizeof(float));
    long i;
    if (c->measuring) return;
    kern->to_f32(e, c->a[2].data, B * C, 0);
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)(B * pieces); i++) {
            size_t b = (size_t)i / pieces, p = (size_t)i % pieces * DB__EACH_ROWS,
                   at = (b * P + p) * C;
            kern->epilogue(db__at(&c->a[0], at), C, e + b * C, 0, NULL, db__at(&c->a[1], at),
                           DB__MIN(P - p, (size_t)DB__EACH_ROWS), C, 0);
        }
    }
}

/* de[b,:] (+)= sum over the pixels of dy[b,...,:]. a: de [B,C], dy.  i: add */
static void db__cpu_add_each_de(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t B = c->a[0].dim[0], C = c->a[0].dim[1], P = db__arg_count(&c->a[1]) / B / C,
           pieces = DB__CEIL_DIV(P, DB__EACH_ROWS), b, k, ch;
    float *sum = (float *)db__scratch(c, B * pieces * C * sizeof(float));
    long i;
    if (c->measuring) return;
    memset(sum, 0, B * pieces * C * sizeof(float));
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)(B * pieces); i++) {
            size_t p = (size_t)i % pieces * DB__EACH_ROWS;
            kern->column_sums(sum + (size_t)i * C,
                              db__at(&c->a[1], ((size_t)i / pieces * P + p) * C),
                              DB__MIN(P - p, (size_t)DB__EACH_ROWS), C);
        }
    }
    for (b = 0; b < B; b++) {
        float *first = sum + b * pieces * C;
        for (k = 1; k < pieces; k++)
            for (ch = 0; ch < C; ch++) first[ch] += first[k * C + ch];
        kern->from_f32(db__at(&c->a[0], b * C), first, C, c->i[0]);
    }
}

static void db__add_each_backward(db_tape *t, const db__node *n)
{
    db_tensor dy = db_grad(t, n->arg[0]), arg[2];
    db__node *made;
    int add = 0;
    if (dy.id < 0) return;
    if (db__needs_grad(t, n->arg[2])) {
        arg[0] = db__grad_target(t, n->arg[2], &add), arg[1] = dy;
        made = db__record(t, DB_OP_ADD_EACH_DE, 2, arg);
        if (made) made->i[0] = add;
    }
    db__grad_pass(t, n->arg[1], dy);
}

db_tensor db_add_each(db_tape *t, db_tensor x, db_tensor e)
{
    db_tensor arg[3];
    if (!db__given(t, x)) return db_none;
    if (x.n_dims < 2 || e.n_dims != 2 || x.dim[x.n_dims - 1] != e.dim[1] || x.dim[0] != e.dim[0])
        return db__shape_fail(t, "add_each: x [B,...,C] and e [B,C]", x, e);
    arg[0] = db__activation(t, x.n_dims, x.dim), arg[1] = x, arg[2] = e;
    if (!db__record(t, DB_OP_ADD_EACH, 3, arg)) return db_none;
    db__inherit_grad(t, arg[0], 2, arg + 1);
    return arg[0];
}

/* y[b,:] = mean over t of x[b,t,:]. a: y [B,C], x [B,T,C] */
static void db__cpu_mean(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t B = c->a[1].dim[0], T = c->a[1].dim[1], C = c->a[1].dim[2], ch, b;
    float *sum = (float *)db__scratch(c, C * sizeof(float));
    if (c->measuring) return;
    for (b = 0; b < B; b++) {
        memset(sum, 0, C * sizeof(float));
        kern->column_sums(sum, db__at(&c->a[1], b * T * C), T, C);
        for (ch = 0; ch < C; ch++) sum[ch] /= (float)T;
        kern->from_f32(db__at(&c->a[0], b * C), sum, C, 0);
    }
}

/* a: dx [B,T,C], dy [B,C].  i: add */
static void db__cpu_mean_dx(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t T = c->a[0].dim[1], C = c->a[0].dim[2], N = c->a[0].dim[0] * T, i;
    if (c->measuring) return;
    for (i = 0; i < N; i++)
        kern->axpby(db__at(&c->a[0], i * C), db__at(&c->a[1], i / T * C), NULL, 1.0f / (float)T, 0,
                    C, c->i[0]);
}

static void db__mean_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[2];
    db__node *made;
    int add = 0;
    arg[1] = db_grad(t, n->arg[0]);
    if (arg[1].id < 0 || !db__needs_grad(t, n->arg[1])) return;
    arg[0] = db__grad_target(t, n->arg[1], &add);
    made = db__record(t, DB_OP_MEAN_DX, 2, arg);
    if (made) made->i[0] = add;
}

db_tensor db_mean_tokens(db_tape *t, db_tensor x)
{
    db_tensor arg[2];
    size_t dim[3];
    if (!db__given(t, x)) return db_none;
    if (x.n_dims != 3) {
        char shape[96];
        db__fail(t->ctx, DB_ERROR_SHAPE, "mean_tokens: %s is not [B,T,C]", db__shape(x, shape));
        return db_none;
    }
    dim[0] = x.dim[0], dim[1] = 1, dim[2] = x.dim[2];
    arg[0] = db__activation(t, 3, dim), arg[1] = x;
    if (!db__record(t, DB_OP_MEAN, 2, arg)) return db_none;
    db__inherit_grad(t, arg[0], 1, arg + 1);
    return arg[0];
}

/* Sinusoids of a number per sample (DDPM's positional encoding): frequencies 10000^(-i / (half -
   shift)). a: y [B,D], t [B] f32.  i: cosine first.  f: shift */
static void db__cpu_sinusoid(db_ctx *ctx, db_call *c)
{
    const db__kernels *kern = db__kernels_for(ctx, c->a[0].dtype);
    size_t B = c->a[0].dim[0], D = c->a[0].dim[1], half = D / 2, b, i;
    if (c->measuring) return;
    for (b = 0; b < B; b++)
        for (i = 0; i < D; i++) {
            double angle =
                exp(-log(10000.0) * (double)(i % half) / ((double)half - (double)c->f[0])) *
                (double)db__floats(&c->a[1])[b];
            float x =
                i >= 2 * half ? 0.0f : (float)((i < half) == !c->i[0] ? sin(angle) : cos(angle));
            kern->from_f32(db__at(&c->a[0], b * D + i), &x, 1, 0);
        }
}

db_tensor db_sinusoid(db_tape *t, db_tensor x, size_t D, int cosine_first, float shift)
{
    db_tensor arg[2];
    db__node *n;
    size_t dim[2];
    if (!db__given(t, x)) return db_none;
    dim[0] = db_count(x), dim[1] = D;
    if (D < 2) {
        db__fail(t->ctx, DB_ERROR_SHAPE, "sinusoid: %zu channels have no sine and cosine", D);
        return db_none;
    }
    arg[0] = db__activation(t, 2, dim), arg[1] = x;
    n = db__record(t, DB_OP_SINUSOID, 2, arg);
    if (!n) return db_none;
    n->i[0] = cosine_first, n->f[0] = shift;
    return arg[0];
}

/* T5's bucket of a distance key - query, both directions: near distances have buckets of their own,
   far ones share buckets on a logarithmic scale up to max_distance. */
static size_t db__t5_bucket(long distance, size_t buckets, size_t max_distance)
{
    size_t half = buckets / 2, exact = half / 2, n = (size_t)(distance < 0 ? -distance : distance),
           far;
    size_t base = distance > 0 ? half : 0;
    if (n < exact) return base + n;
    far = exact +
        (size_t)(log((double)n / (double)exact) / log((double)max_distance / (double)exact) *
                 (double)(half - exact));
    return base + DB__MIN(far, half - 1);
}

/* bias[h,i,j] = table[bucket(j - i), h]. a: bias f32 [heads,T,S], table [buckets,heads].  s: max
   distance */
static void db__cpu_position_bias(db_ctx *ctx, db_call *c)
{
    size_t T = c->a[0].dim[1], S = c->a[0].dim[2], heads = c->a[0].dim[0], i, j, h;
    (void)ctx;
    if (c->measuring) return;
    for (i = 0; i < T; i++)
        for (j = 0; j < S; j++)
            for (h = 0; h < heads; h++)
                ((float *)c->a[0].data)[(h * T + i) * S + j] = db__floats(
                    &c->a[1])[db__t5_bucket((long)j - (long)i, c->a[1].dim[0], c->s[0]) * heads +
                              h];
}

/* a: dtable, dbias.  s: max distance */
static void db__cpu_position_bias_dw(db_ctx *ctx, db_call *c)
{
    size_t T = c->a[1].dim[1], S = c->a[1].dim[2], heads = c->a[1].dim[0], i, j, h;
    (void)ctx;
    if (c->measuring) return;
    for (i = 0; i < T; i++)
        for (j = 0; j < S; j++)
            for (h = 0; h < heads; h++)
                ((float *)c->a[0]
                     .data)[db__t5_bucket((long)j - (long)i, c->a[0].dim[0], c->s[0]) * heads +
                            h] += db__floats(&c->a[1])[(h * T + i) * S + j];
}

static void db__position_bias_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[2];
    db__node *made;
    arg[1] = db_grad(t, n->arg[0]);
    if (arg[1].id < 0 || !db__needs_grad(t, n->arg[1])) return;
    arg[0] = db__sum_target(t, n->arg[1]);
    made = db__record(t, DB_OP_POSITION_BIAS_DW, 2, arg);
    if (made) made->s[0] = n->s[0];
}

static db_tensor db__position_bias(db_tape *t, db_tensor table, size_t T, size_t max_distance)
{
    db_tensor arg[2];
    db__node *n;
    size_t dim[3];
    if (t->ctx->result != DB_OK) return db_none;
    dim[0] = table.dim[1], dim[1] = T, dim[2] = T;
    arg[0] = db__new_value(t, DB__ACTIVATION, DB_F32, 3, dim), arg[1] = table;
    n = db__record(t, DB_OP_POSITION_BIAS, 2, arg);
    if (!n) return db_none;
    n->s[0] = max_distance;
    db__inherit_grad(t, arg[0], 1, arg + 1);
    return arg[0];
}

/* ---- losses ---------------------------------------------------------------------------------- */

/* Mean over the batch of weight[b] * mean over the sample of pixel[b,h,w] (pred - target)^2; the
   pred may have more channels than the target (a learned variance), which do not count. a: loss
   [1], each [B], pred [B,...,CP], target f32 [B,...,CT], weight [B], pixel [B,H,W] */
static void db__cpu_mse(db_ctx *ctx, db_call *c)
{
    const db_arg *pred = &c->a[2], *target = &c->a[3];
    const db__kernels *kern = db__kernels_for(ctx, pred->dtype);
    size_t B = pred->dim[0], CP = pred->dim[pred->n_dims - 1], CT = target->dim[target->n_dims - 1],
           P = db__arg_count(pred) / B / CP;
    float *each = (float *)c->a[1].data;
    double total = 0;
    long b;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (b = 0; b < (long)B; b++) {
            double sum = 0;
            size_t p, ch;
            for (p = 0; p < P; p++) {
                double here = 0,
                       w = c->a[5].present ? (double)db__floats(&c->a[5])[(size_t)b * P + p] : 1;
                for (ch = 0; ch < CT; ch++) {
                    double d = (double)db__read(kern, pred, ((size_t)b * P + p) * CP + ch) -
                        (double)db__floats(target)[((size_t)b * P + p) * CT + ch];
                    here += d * d;
                }
                sum += here * w;
            }
            each[b] = (float)(sum / (double)(P * CT));
        }
    }
    for (b = 0; b < (long)B; b++)
        total +=
            (double)each[b] * (c->a[4].present ? (double)db__floats(&c->a[4])[b] : 1) / (double)B;
    *(float *)c->a[0].data = (float)total;
}

/* a: dpred, pred, target, weight, pixel, dloss [1] */
static void db__cpu_mse_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *pred = &c->a[1], *target = &c->a[2];
    const db__kernels *kern = db__kernels_for(ctx, pred->dtype);
    size_t B = pred->dim[0], CP = pred->dim[pred->n_dims - 1], CT = target->dim[target->n_dims - 1],
           P = db__arg_count(pred) / B / CP;
    long b;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (b = 0; b < (long)B; b++) {
            float scale = 2.0f * db__floats(&c->a[5])[0] / (float)(B * P * CT);
            size_t p, ch;
            if (c->a[3].present) scale *= db__floats(&c->a[3])[b];
            for (p = 0; p < P; p++) {
                float w = c->a[4].present ? scale * db__floats(&c->a[4])[(size_t)b * P + p] : scale;
                for (ch = 0; ch < CP; ch++) {
                    size_t at = ((size_t)b * P + p) * CP + ch;
                    float g = ch < CT ? w *
                            (db__read(kern, pred, at) -
                             db__floats(target)[((size_t)b * P + p) * CT + ch])
                                      : 0;
                    kern->from_f32(db__at(&c->a[0], at), &g, 1, c->i[0]);
                }
            }
        }
    }
}

static void db__mse_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[6];
    db__node *made;
    int add = 0;
    arg[5] = db_grad(t, n->arg[0]);
    if (arg[5].id < 0 || !db__needs_grad(t, n->arg[2])) return;
    arg[0] = db__grad_target(t, n->arg[2], &add);
    arg[1] = n->arg[2], arg[2] = n->arg[3], arg[3] = n->arg[4], arg[4] = n->arg[5];
    made = db__record(t, DB_OP_MSE_DX, 6, arg);
    if (made) made->i[0] = add;
}

db_tensor db_mse(db_tape *t, db_tensor pred, db_tensor target, db_tensor weight, db_tensor pixel,
                 db_tensor *each)
{
    db_tensor arg[6];
    size_t one = 1, B;
    if (each) *each = db_none;
    if (!db__given(t, pred) || !db__given(t, target)) return db_none;
    B = pred.dim[0];
    if (pred.n_dims < 2 || pred.n_dims != target.n_dims ||
        db_count(pred) / pred.dim[pred.n_dims - 1] !=
            db_count(target) / target.dim[target.n_dims - 1] ||
        pred.dim[pred.n_dims - 1] < target.dim[target.n_dims - 1])
        return db__shape_fail(t, "mean squared error: prediction and target", pred, target);
    if (pixel.id >= 0 && db_count(pixel) * pred.dim[pred.n_dims - 1] != db_count(pred))
        return db__shape_fail(t, "mean squared error: prediction and pixel weights", pred, pixel);
    if (weight.id >= 0 && db_count(weight) != B)
        return db__shape_fail(t, "mean squared error: prediction and weights [B]", pred, weight);
    arg[0] = db__new_value(t, DB__KEPT, DB_F32, 1, &one);
    arg[1] = db__new_value(t, DB__KEPT, DB_F32, 1, &B);
    arg[2] = pred, arg[3] = target, arg[4] = weight, arg[5] = pixel;
    if (!db__record(t, DB_OP_MSE, 6, arg)) return db_none;
    db__inherit_grad(t, arg[0], 1, arg + 2);
    if (each) *each = arg[1];
    return arg[0];
}

/* The class of a row; one that is not among the V is the last, as in db_embedding. */
static size_t db__target(int32_t target, size_t V) { return DB__MIN((size_t)target, V - 1); }

/* Mean over the rows with target >= 0 of -log softmax(logits)[target]; or, with a row of
   probabilities p for each, over all rows of -sum p log softmax(logits).
   a: loss [1], lse [N], logits [N,V], targets i32 [N] or f32 [N,V] */
static void db__cpu_cross_entropy(db_ctx *ctx, db_call *c)
{
    const db_arg *logits = &c->a[2];
    const db__kernels *kern = db__kernels_for(ctx, logits->dtype);
    size_t N = db__arg_count(&c->a[1]), V = db__arg_count(logits) / N, counted = 0;
    const int32_t *target = c->a[3].dtype == DB_I32 ? (const int32_t *)c->a[3].data : NULL;
    double total = 0;
    long n;
    if (c->measuring) return;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (n = 0; n < (long)N; n++) {
            float max = -3e38f;
            double sum = 0;
            size_t j;
            if (target && target[n] < 0) continue;
            for (j = 0; j < V; j++) max = DB__MAX(max, db__read(kern, logits, (size_t)n * V + j));
            for (j = 0; j < V; j++)
                sum += exp((double)db__read(kern, logits, (size_t)n * V + j) - (double)max);
            ((float *)c->a[1].data)[n] = max + (float)log(sum);
        }
    }
    for (n = 0; n < (long)N; n++) {
        double lse = (double)((float *)c->a[1].data)[n];
        size_t j, row = (size_t)n * V;
        if (target && target[n] < 0) continue;
        if (target) total += lse - (double)db__read(kern, logits, row + db__target(target[n], V));
        for (j = 0; j < V && !target; j++)
            total += (double)db__floats(&c->a[3])[row + j]
                * (lse - (double)db__read(kern, logits, row + j));
        counted++;
    }
    *(float *)c->a[0].data = counted ? (float)(total / (double)counted) : 0;
}

/* (softmax(logits) sum p - p) / N. a: dlogits, logits, lse, targets, dloss */
static void db__cpu_cross_entropy_dx(db_ctx *ctx, db_call *c)
{
    const db_arg *logits = &c->a[1];
    const db__kernels *kern = db__kernels_for(ctx, logits->dtype);
    size_t N = db__arg_count(&c->a[2]), V = db__arg_count(logits) / N, counted = 0, k;
    const int32_t *target = c->a[3].dtype == DB_I32 ? (const int32_t *)c->a[3].data : NULL;
    const float *p = db__floats(&c->a[3]);
    long n;
    if (c->measuring) return;
    for (k = 0; k < N; k++) counted += !target || target[k] >= 0;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (n = 0; n < (long)N; n++) {
            size_t j, row = (size_t)n * V;
            float weight = target ? (float)(target[n] >= 0) : 0;
            for (j = 0; j < V && !target; j++) weight += p[row + j];
            for (j = 0; j < V; j++) {
                float aim = target ? (float)(j == db__target(target[n], V)) : p[row + j], g = 0;
                double y = (double)db__read(kern, logits, row + j);
                y -= (double)db__floats(&c->a[2])[n];
                if (weight > 0)
                    g = ((float)exp(y) * weight - aim) * db__floats(&c->a[4])[0] / (float)counted;
                kern->from_f32(db__at(&c->a[0], row + j), &g, 1, 0);
            }
        }
    }
}

static void db__cross_entropy_backward(db_tape *t, const db__node *n)
{
    db_tensor arg[5];
    int add = 0;
    arg[4] = db_grad(t, n->arg[0]);
    if (arg[4].id < 0 || !db__needs_grad(t, n->arg[2])) return;
    arg[0] = db__grad_target(t, n->arg[2], &add);
    arg[1] = n->arg[2], arg[2] = n->arg[1], arg[3] = n->arg[3];
    if (add)
        db__fail(t->ctx, DB_ERROR_UNSUPPORTED, "cross entropy must be the only use of its logits");
    db__record(t, DB_OP_CROSS_ENTROPY_DX, 5, arg);
}

db_tensor db_cross_entropy(db_tape *t, db_tensor logits, db_tensor targets)
{
    db_tensor arg[4];
    size_t one = 1, V, N;
    int soft;
    if (!db__given(t, logits) || !db__given(t, targets)) return db_none;
    soft = t->value[targets.id].dtype == DB_F32;
    V = logits.dim[logits.n_dims - 1], N = db_count(targets) / (soft ? V : 1);
    if (db_count(logits) != N * V)
        return db__shape_fail(t, "cross entropy: logits and targets", logits, targets);
    arg[0] = db__new_value(t, DB__KEPT, DB_F32, 1, &one);
    arg[1] = db__new_value(t, DB__ACTIVATION, DB_F32, 1, &N);
    arg[2] = logits, arg[3] = targets;
    if (!db__record(t, DB_OP_CROSS_ENTROPY, 4, arg)) return db_none;
    db__inherit_grad(t, arg[0], 1, arg + 2);
    return arg[0];
}

/* ---- the optimiser's: on no tape, called from [DB-04] ---------------------------------------- */

static db__adamw_step db__adamw_step_of(const db_call *c)
{
    db__adamw_step a;
    memcpy(&a, c->f, sizeof a);
    return a;
}

/* a: w, m, v, g, all [n].  f: the members of db__adamw_step */
static void db__cpu_adamw(db_ctx *ctx, db_call *c)
{
    size_t n = db__arg_count(&c->a[0]);
    db__adamw_step step = db__adamw_step_of(c);
    long i;
    {
        DB__PARALLEL_FOR(ctx, static)
        for (i = 0; i < (long)DB__CEIL_DIV(n, DB__PIECE); i++) {
            size_t at = (size_t)i * DB__PIECE;
            ctx->isa->f32->adamw((float *)c->a[0].data + at, (float *)c->a[1].data + at,
                                 (float *)c->a[2].data + at, db__floats(&c->a[3]) + at,
                                 DB__MIN(n - at, (size_t)DB__PIECE), &step);
        }
    }
}

static void db__cpu_adamw_8bit(db_ctx *ctx, db_call *c); /* [DB-04] */

/* The sum of the squares of each of the equal parts of x. a: sums [parts], x [n] */
static void db__cpu_squares(db_ctx *ctx, db_call *c)
{
    size_t n = db__arg_count(&c->a[1]), parts = db__arg_count(&c->a[0]);
    long i;
    DB__PARALLEL_FOR(ctx, static)
    for (i = 0; i < (long)parts; i++) {
        size_t at = n * (size_t)i / parts, end = n * ((size_t)i + 1) / parts, m;
        double sum = 0;
        for (; at < end; at += m) {
            const float *x = db__floats(&c->a[1]) + at;
            m = DB__MIN(end - at, (size_t)DB__PIECE);
            sum += (double)ctx->isa->f32->dot(x, x, m);
        }
        ((float *)c->a[0].data)[i] = (float)sum;
    }
}

/* ---- the tables that join operations, gradients and the CPU ---------------------------------- */

typedef struct db__op_row {
    const char *name;
    int outputs;
    void (*backward)(db_tape *, const db__node *);
} db__op_row;

static const db__op_row db__op_rows[DB_OP_COUNT] = {
#define DB__ROW(id, name, outputs, run, back) {name, outputs, back},
    DB__OPS(DB__ROW)
#undef DB__ROW
};

static int db__op_outputs(db_op op) { return db__op_rows[op].outputs; }
static const char *db__op_name(db_op op) { return db__op_rows[op].name; }
static void db__op_backward(db_tape *t, const db__node *node)
{
    if (db__op_rows[node->op].backward) db__op_rows[node->op].backward(t, node);
}

/* Multiplications and additions of the operations that dominate; the others count as nothing. */
static double db__op_flops(db_op op, const db_call *c)
{
    double n = 1;
    int d;
    switch (op) {
    case DB_OP_CONV2D: case DB_OP_CONV2D_DX: case DB_OP_CONV2D_DW: {
        const db_arg *w = op == DB_OP_CONV2D_DW ? &c->a[0] : &c->a[2];
        const db_arg *y = op == DB_OP_CONV2D ? &c->a[0]
            : op == DB_OP_CONV2D_DX          ? &c->a[1]
                                             : &c->a[3];
        for (d = 0; d < w->n_dims; d++) n *= (double)w->dim[d];
        return 2 * n * (double)y->dim[0] * (double)y->dim[1] * (double)y->dim[2];
    }
    case DB_OP_ATTENTION: case DB_OP_ATTENTION_DX: {
        const db_arg *q = op == DB_OP_ATTENTION ? &c->a[2] : &c->a[7],
                     *k = op == DB_OP_ATTENTION ? &c->a[3] : &c->a[8];
        n = (double)q->dim[0] * (double)q->dim[1] * (double)k->dim[1] * (double)q->dim[2];
        return (op == DB_OP_ATTENTION ? 4 : 10) * n;
    }
    default: return 0;
    }
}

static void *db__cpu_alloc(db_ctx *ctx, size_t bytes) { return db__try_alloc(ctx, bytes); }
static void db__cpu_release(db_ctx *ctx, void *memory) { db__free(ctx, memory); }
static db_result db__cpu_copy_memory(db_ctx *ctx, void *to, const void *from, size_t bytes)
{
    (void)ctx;
    memcpy(to, from, bytes);
    return DB_OK;
}

static db_result db__cpu_sync(db_ctx *ctx) { return ctx->result; }

const db_backend *db_backend_cpu(void)
{
    static const db_backend cpu = {"cpu",
                                   db__cpu_alloc,
                                   db__cpu_release,
                                   db__cpu_copy_memory,
                                   db__cpu_copy_memory,
                                   db__cpu_sync,
                                   NULL,
                                   NULL,
                                   NULL,
                                   {
#define DB__ROW(id, name, outputs, run, back) run,
                                       DB__OPS(DB__ROW)
#undef DB__ROW
                                   }};
    return &cpu;
}

/* ==== [DB-04] Parameters and the optimiser =======================================================

   The table of a network's weights and gradients; AdamW (Loshchilov and Hutter, 2019) as
   torch.optim has it, its moments in f32 or 8 bits (Dettmers et al., 2021); the exponential moving
   average; learning-rate schedules, diffusers.optimization's.

   Easy to get wrong
   - AdamW's weight decay multiplies the weight; it does not go through the moments.
   - In 8 bits zero has a code of its own and the negative codes end one short of -1; a negative
     first moment never becomes zero, or its direction would be lost.
   - PyTorch clips by max_norm / (norm + 1e-6), over all parameters together.
   - diffusers' cosine with one cycle is half a cosine; its "restarts" are hard. */

db_param *db_params_find(const db_param_table *p, const char *name)
{
    size_t k;
    for (k = 0; k < p->n; k++)
        if (!strcmp(p->item[k].name, name)) return &p->item[k];
    return NULL;
}

/* Adds a parameter to the table; memory comes with db__params_allocate. */
static db_param *db__params_declare(db_param_table *p, const char *name, int n_dims,
                                    const size_t *dim)
{
    db_param *item;
    void *grown;
    size_t count = 1;
    int d, overflow = 0;
    for (d = 0; d < n_dims; d++) count = db__mul(count, dim[d], &overflow);
    if (overflow || count > SIZE_MAX / 2) {
        db__fail(p->ctx, DB_ERROR_SHAPE, "the parameter %s is too large", name);
        return NULL;
    }
    grown = db__grow(p->ctx, p->item, &p->capacity, p->n + 1, sizeof *p->item);
    if (!grown) return NULL;
    p->item = (db_param *)grown;
    item = &p->item[p->n];
    memset(item, 0, sizeof *item);
    item->name = db__strdup(p->ctx, name);
    if (!item->name) return NULL;
    item->n_dims = n_dims;
    item->count = count;
    for (d = 0; d < n_dims; d++) item->dim[d] = dim[d];
    p->count = db__sum(p->count, DB__ROUND_UP(item->count, 16));
    p->n++;
    return item;
}

/* Zeroed memory of the backend, which host code reaches as well. */
static void *db__device_alloc(db_ctx *ctx, size_t count, size_t size)
{
    int overflow = 0;
    size_t bytes = db__mul(count, size, &overflow);
    void *memory = overflow ? NULL : ctx->backend->alloc(ctx, bytes);
    return memory ? memory : db__fail_memory(ctx, count, size);
}

/* Gives every declared parameter its place in one buffer, 64-byte aligned. */
static db_result db__params_allocate(db_param_table *p)
{
    size_t k;
    float *at;
    p->data = at = (float *)db__device_alloc(p->ctx, p->count, sizeof(float));
    if (!at) return p->ctx->result;
    for (k = 0; k < p->n; k++) {
        p->item[k].data = at;
        at += DB__ROUND_UP(p->item[k].count, 16);
    }
    return DB_OK;
}

static void db__source_free(db_ctx *ctx, struct db__source *source); /* [DB-07] */

static void db__params_free(db_param_table *p)
{
    size_t k;
    if (p->lora) {
        db__params_free(&p->lora->params);
        db__free(p->ctx, p->lora);
    }
    for (k = 0; k < p->n; k++) db__free(p->ctx, p->item[k].name);
    db__free(p->ctx, p->item);
    db__source_free(p->ctx, p->source);
    p->ctx->backend->release(p->ctx, p->data);
    p->ctx->backend->release(p->ctx, p->grad);
}

db_result db_params_require_grad(db_param_table *p)
{
    size_t k;
    if (db_params_fill(p) != DB_OK || p->grad) return p->ctx->result;
    p->grad = (float *)db__device_alloc(p->ctx, p->count + DB_GRAD_ROOM, sizeof(float));
    if (!p->grad) return p->ctx->result;
    for (k = 0; k < p->n; k++) p->item[k].grad = p->grad + (p->item[k].data - p->data);
    return DB_OK;
}

/* Where row (oc, ky, kx) of a convolution's kernel begins. Files have [OC][IC][k][k], memory has
   [k][OC][k][IC]; of all other parameters both have the same. */
static size_t db__kernel_row(const db_param *item, size_t oc, size_t ky, size_t kx)
{
    return ((ky * item->dim[0] + oc) * item->dim[2] + kx) * item->dim[1];
}

void db_param_get(const db_param *item, const float *from, float *out)
{
    size_t OC = item->dim[0], IC = item->dim[1], k = item->dim[2], oc, ic, ky, kx;
    if (item->n_dims != 4) memcpy(out, from, item->count * sizeof *out);
    for (oc = 0; oc < OC && item->n_dims == 4; oc++)
        for (ic = 0; ic < IC; ic++)
            for (ky = 0; ky < k; ky++)
                for (kx = 0; kx < k; kx++) *out++ = from[db__kernel_row(item, oc, ky, kx) + ic];
}

/* Output oc of a kernel from a file's slice [IC][k][k] */
static void db__kernel_set(const db_param *item, float *to, size_t oc, const float *slice)
{
    size_t IC = item->dim[1], k = item->dim[2], ic, ky, kx;
    for (ky = 0; ky < k; ky++)
        for (kx = 0; kx < k; kx++) {
            float *row = to + db__kernel_row(item, oc, ky, kx);
            for (ic = 0; ic < IC; ic++) row[ic] = slice[(ic * k + ky) * k + kx];
        }
}

void db_param_set(const db_param *item, float *to, const float *in)
{
    size_t oc;
    if (item->n_dims != 4) memcpy(to, in, item->count * sizeof *to);
    for (oc = 0; oc < item->dim[0] && item->n_dims == 4; oc++)
        db__kernel_set(item, to, oc, in + oc * (item->count / item->dim[0]));
}

db_optimizer_config db_optimizer_config_default(void)
{
    db_optimizer_config c;
    memset(&c, 0, sizeof c);
    c.beta1 = 0.9f, c.beta2 = 0.999f, c.eps = 1e-8f, c.weight_decay = 1e-2f, c.max_grad_norm = 1.0f;
    return c;
}

/* ---- 8-bit moments ------------------------------------------------------------------------------
   Dettmers et al., 2021 (8-bit Optimizers via Block-wise Quantization), sections 2 and 3.1, with
   bitsandbytes' settings: blocks of 256 numbers, each with the largest absolute value as its scale;
   parameters of less than 4096 elements stay in f32. A code's value is 10^-e times a linear
   fraction in (.1, 1): the larger, the more bits of fraction ("dynamic tree" quantisation). The
   second moment has no sign and one bit more. */

enum { DB__8BIT_BLOCK = 256, DB__8BIT_SMALLEST = 4096, DB__8BIT_KEYS = 4096,
       DB__8BIT_ZERO = 127 }; /* the code of 0 where there are negative numbers; else 0 */

/* The 256 values in ascending order, and a start for the search: the code of the smallest number
   whose first bits are `key` (see db__8bit_key). */
typedef struct db__8bit_map {
    float value[256];
    uint8_t start[DB__8BIT_KEYS];
    int zero; /* the code of 0 */
} db__8bit_map;

/* x in (0, 1]: exponent from 2^-31 on and seven bits of mantissa; smaller ones are all key 0. */
static size_t db__8bit_key(float x)
{
    uint32_t high = db__float_bits(x) >> 16;
    return high <= 96u << 7 ? 0 : DB__MIN(high - (96u << 7), (uint32_t)DB__8BIT_KEYS - 1);
}

/* The code nearest to |x|, from `code` up; the value between two codes belongs to the lower one. */
static int db__8bit_nearest(const db__8bit_map *map, int code, float x)
{
    while (code < 255 && x > (map->value[code] + map->value[code + 1]) * 0.5f) code++;
    return code;
}

static void db__8bit_map_init(db__8bit_map *map, int has_sign)
{
    int e, i, n = 0, code;
    double scale = 1e-6;
    float positive[256];
    size_t key;
    for (e = 0; e < 7; e++, scale *= 10) { /* 1, 2, 4 ... 64 fractions, or twice as many */
        int fractions = (has_sign ? 1 : 2) << e;
        for (i = 0; i < fractions; i++)
            positive[n++] = (float)(scale * (0.1 + 0.9 * (i + 0.5) / fractions));
    }
    map->zero = has_sign ? DB__8BIT_ZERO : 0;
    for (i = 0; has_sign && i < n; i++) map->value[i] = -positive[n - 1 - i];
    map->value[map->zero] = 0;
    memcpy(map->value + map->zero + 1, positive, (size_t)n * sizeof *positive);
    map->value[255] = 1;
    for (key = 0, code = map->zero; key < DB__8BIT_KEYS; key++) {
        float least = db__bits_to_float((uint32_t)(key + (96u << 7)) << 16);
        map->start[key] = (uint8_t)(code = db__8bit_nearest(map, code, key ? least : 0));
    }
}

/* The code of x in [-1, 1]. */
static uint8_t db__8bit_encode(const db__8bit_map *map, float x)
{
    float size = fabsf(x);
    int code = db__8bit_nearest(map, map->start[db__8bit_key(size)], size);
    if (x >= 0 || !map->zero) return (uint8_t)code;
    code = 2 * map->zero - code;                      /* the mirror image, which ends at -.993 */
    return (uint8_t)DB__MIN(DB__MAX(code, 0), map->zero - 1);
}

/* Numbers in m and v that parameter k needs, and bytes in m8 and v8. */
static void db__state_of(const db_optimizer *o, size_t k, size_t *floats, size_t *codes)
{
    size_t n = o->params->item[k].count;
    int small = n < DB__8BIT_SMALLEST;
    *floats = small ? n : DB__CEIL_DIV(n, DB__8BIT_BLOCK);
    *codes = small ? 0 : n;
}

/* AdamW with 8-bit moments, block by block: codes to numbers, update, numbers to codes. a: w [n],
   scales of m and v [n / 256, rounded up], codes of m and v [n], g [n], both maps' values, which
   begin a db__8bit_map.  i: the maps' codes of zero.  f: the members of db__adamw_step */
static void db__cpu_adamw_8bit(db_ctx *ctx, db_call *c)
{
    size_t count = db__arg_count(&c->a[0]);
    db__adamw_step step = db__adamw_step_of(c);
    long block;
    DB__PARALLEL_FOR(ctx, static)
    for (block = 0; block < (long)DB__CEIL_DIV(count, DB__8BIT_BLOCK); block++) {
        size_t at = (size_t)block * DB__8BIT_BLOCK, i;
        size_t n = DB__MIN(count - at, (size_t)DB__8BIT_BLOCK);
        float moment[2][DB__8BIT_BLOCK];
        int which;
        for (which = 0; which < 2; which++) {
            const db__8bit_map *map = (const db__8bit_map *)c->a[6 + which].data;
            const uint8_t *code = (const uint8_t *)c->a[3 + which].data + at;
            float scale = db__floats(&c->a[1 + which])[block];
            for (i = 0; i < n; i++) moment[which][i] = map->value[code[i]] * scale;
        }
        ctx->isa->f32->adamw((float *)c->a[0].data + at, moment[0], moment[1],
                             db__floats(&c->a[5]) + at, n, &step);
        for (which = 0; which < 2; which++) {
            const db__8bit_map *map = (const db__8bit_map *)c->a[6 + which].data;
            uint8_t *code = (uint8_t *)c->a[3 + which].data + at;
            float largest = 0;
            for (i = 0; i < n; i++) largest = DB__MAX(largest, fabsf(moment[which][i]));
            ((float *)c->a[1 + which].data)[block] = largest;
            for (i = 0; i < n; i++)
                code[i] = db__8bit_encode(map, largest > 0 ? moment[which][i] / largest : 0);
        }
    }
}

db_result db_optimizer_init(db_optimizer *o, db_param_table *params,
                            const db_optimizer_config *config)
{
    db_ctx *ctx = params->ctx;
    size_t k, floats = 0, codes = 0, f, c;
    memset(o, 0, sizeof *o);
    o->config = config ? *config : db_optimizer_config_default();
    o->ctx = ctx, o->params = params;
    if (ctx->result != DB_OK) return ctx->result;
    if (!(o->config.beta1 >= 0 && o->config.beta1 < 1 && o->config.beta2 >= 0 &&
          o->config.beta2 < 1 && o->config.eps >= 0 && o->config.weight_decay >= 0))
        return db__fail(ctx, DB_ERROR_ARGUMENT,
                        "AdamW with beta1 %g, beta2 %g, eps %g, weight decay %g: the betas are "
                        "from 0 to below 1, the others from 0",
                        (double)o->config.beta1, (double)o->config.beta2, (double)o->config.eps,
                        (double)o->config.weight_decay);
    o->at = (size_t *)db__alloc(ctx, params->n + 1, sizeof *o->at);
    o->at8 = (size_t *)db__alloc(ctx, params->n + 1, sizeof *o->at8);
    if (!o->at || !o->at8 || db_params_fill(params) != DB_OK) return ctx->result;
    for (k = 0; k < params->n; k++) {
        o->at[k] = (size_t)(params->item[k].data - params->data);
        if (o->config.use_8bit_adam) o->at[k] = floats, o->at8[k] = codes;
        db__state_of(o, k, &f, &c);
        floats += f, codes += c;
    }
    o->at[k] = o->config.use_8bit_adam ? floats : params->count;
    o->at8[k] = o->config.use_8bit_adam ? codes : 0;
    o->m = (float *)db__device_alloc(ctx, o->at[k] + 1, sizeof(float));
    o->v = (float *)db__device_alloc(ctx, o->at[k] + 1, sizeof(float));
    if (!o->at8[k]) return db_params_require_grad(params);
    o->m8 = (uint8_t *)db__device_alloc(ctx, codes, 1);
    o->v8 = (uint8_t *)db__device_alloc(ctx, codes, 1);
    o->map = (db__8bit_map *)db__device_alloc(ctx, 2, sizeof *o->map);
    if (o->map) db__8bit_map_init(&o->map[0], 1), db__8bit_map_init(&o->map[1], 0);
    return db_params_require_grad(params);
}

void db_optimizer_free(db_optimizer *o)
{
    if (!o->ctx) return;
    o->ctx->backend->release(o->ctx, o->m);
    o->ctx->backend->release(o->ctx, o->v);
    o->ctx->backend->release(o->ctx, o->m8);
    o->ctx->backend->release(o->ctx, o->v8);
    o->ctx->backend->release(o->ctx, o->map);
    db__free(o->ctx, o->at);
    db__free(o->ctx, o->at8);
    memset(o, 0, sizeof *o);
}

/* n numbers as an argument of an operation */
static db_arg db__arg(void *data, size_t n, db_dtype dtype)
{
    db_arg a;
    memset(&a, 0, sizeof a);
    a.data = data, a.dim[0] = n, a.n_dims = 1, a.dtype = dtype, a.present = 1;
    return a;
}
static db_arg db__float_arg(float *data, size_t n) { return db__arg(data, n, DB_F32); }

/* Runs one operation that is on no tape, and waits for it. */
static db_result db__run_alone(db_ctx *ctx, db_op op, db_call *c)
{
    if (ctx->backend->begin_run) ctx->backend->begin_run(ctx, NULL, 0, 0, 0);
    if (db__begin(ctx, op, c) != DB_OK) return ctx->result;
    return ctx->backend->sync(ctx);
}

void db_zero_grad(db_param_table *p)
{
    db_call c;
    memset(&c, 0, sizeof c);
    if (!p->grad || p->ctx->result != DB_OK) return;
    c.a[0] = db__float_arg(p->grad, p->count);
    db__run_alone(p->ctx, DB_OP_FILL, &c);
}

/* The next run of parameters from *k on that are not frozen, as numbers [*from, *to) of the table:
   what lies between parameters is zero and stays so. 0: no more. */
static int db__next_run(const db_param_table *p, size_t *k, size_t *from, size_t *to)
{
    while (*k < p->n && p->item[*k].frozen) ++*k;
    if (*k == p->n) return 0;
    *from = (size_t)(p->item[*k].data - p->data);
    for (; *k < p->n && !p->item[*k].frozen; ++*k)
        *to = (size_t)(p->item[*k].data - p->data) + p->item[*k].count;
    return 1;
}

/* The norm of all gradients: squares in parts, parts in order. */
static double db__grad_norm(const db_param_table *p)
{
    double total = 0;
    size_t k = 0, from = 0, to = 0, i;
    while (db__next_run(p, &k, &from, &to)) {
        size_t parts = DB__MIN((size_t)DB_GRAD_ROOM, DB__CEIL_DIV(to - from, 4096));
        db_call c;
        memset(&c, 0, sizeof c);
        c.a[0] = db__float_arg(p->grad + p->count, parts);
        c.a[1] = db__float_arg(p->grad + from, to - from);
        if (db__run_alone(p->ctx, DB_OP_SQUARES, &c) != DB_OK) return 0;
        for (i = 0; i < parts; i++) total += (double)p->grad[p->count + i];
    }
    return sqrt(total);
}

/* What the next update is of, from parameter *k on: a run of parameters with moments in f32; with
   8-bit moments one parameter, whose codes are there if it is large. -1: no more. */
static int db__next_update(const db_optimizer *o, size_t *k, db_call *c)
{
    const db_param_table *p = o->params;
    size_t from = 0, to = 0, n, m, codes;
    memset(c, 0, sizeof *c);
    if (!o->config.use_8bit_adam) {
        if (!db__next_run(p, k, &from, &to)) return -1;
        m = from, n = to - from, codes = 0;
    } else {
        while (*k < p->n && p->item[*k].frozen) ++*k;
        if (*k == p->n) return -1;
        from = (size_t)(p->item[*k].data - p->data), n = p->item[*k].count;
        m = o->at[*k], codes = o->at8[*k + 1] - o->at8[*k];
        ++*k;
    }
    c->a[0] = db__float_arg(p->data + from, n);
    c->a[1] = db__float_arg(o->m + m, codes ? DB__CEIL_DIV(n, DB__8BIT_BLOCK) : n);
    c->a[2] = db__float_arg(o->v + m, c->a[1].dim[0]);
    c->a[3] = db__float_arg(p->grad + from, n);
    if (!codes) return DB_OP_ADAMW;
    c->a[5] = c->a[3];
    c->a[3] = db__arg(o->m8 + o->at8[*k - 1], n, DB_U8);
    c->a[4] = db__arg(o->v8 + o->at8[*k - 1], n, DB_U8);
    c->a[6] = db__float_arg(o->map[0].value, 256), c->a[7] = db__float_arg(o->map[1].value, 256);
    c->i[0] = DB__8BIT_ZERO; /* not read from o->map: an update may be running on it */
    return DB_OP_ADAMW_8BIT;
}

db_result db_optimizer_step(db_optimizer *o, float lr, float grad_scale, float *norm)
{
    db_param_table *p = o->params;
    db_ctx *ctx = p->ctx;
    db__adamw_step a;
    db_call c;
    double grad_norm;
    size_t k = 0;
    int op;
    if (ctx->result != DB_OK) return ctx->result;
    if (!(lr >= 0 && lr <= FLT_MAX))
        return db__fail(ctx, DB_ERROR_ARGUMENT, "a learning rate of %g", (double)lr);
    grad_norm = db__grad_norm(p);
    if (ctx->result != DB_OK) return ctx->result;
    if (o->clipped_with) grad_norm = hypot(grad_norm, db__grad_norm(o->clipped_with));
    grad_norm *= (double)grad_scale;
    if (norm) *norm = (float)grad_norm;
    if (!(grad_norm < 1e30))
        return db__fail(ctx, DB_ERROR_NUMERIC,
                        "the gradient's norm is %g at update %llu: lower the learning rate",
                        grad_norm, (unsigned long long)o->step + 1);
    o->step++;
    a.lr = lr, a.beta1 = o->config.beta1, a.beta2 = o->config.beta2, a.eps = o->config.eps,
    a.weight_decay = o->config.weight_decay;
    a.correction1 = (float)(1 - pow((double)a.beta1, (double)o->step));
    a.correction2 = (float)(1 - pow((double)a.beta2, (double)o->step));
    a.grad_scale = grad_scale;
    if (o->config.max_grad_norm > 0)
        a.grad_scale *= (float)DB__MIN(1.0, (double)o->config.max_grad_norm / (grad_norm + 1e-6));
    while (ctx->result == DB_OK && (op = db__next_update(o, &k, &c)) >= 0) {
        memcpy(c.f, &a, sizeof a);
        db__begin(ctx, (db_op)op, &c);
    }
    return ctx->backend->sync(ctx);
}

float *db_ema_create(const db_param_table *p)
{
    float *average = NULL;
    if (!p->data || p->source)
        db__fail(p->ctx, DB_ERROR_ARGUMENT, "the weights are still in their file: db_params_fill");
    if (p->ctx->result == DB_OK)
        average = (float *)db__device_alloc(p->ctx, p->count, sizeof(float));
    if (average) memcpy(average, p->data, p->count * sizeof(float));
    return average;
}

void db_ema_update(const db_param_table *p, float *average, float decay)
{
    db_call c;
    memset(&c, 0, sizeof c);
    if (!average || p->ctx->result != DB_OK) return;
    c.a[0] = c.a[1] = db__float_arg(average, p->count), c.a[2] = db__float_arg(p->data, p->count);
    c.f[0] = decay, c.f[1] = 1 - decay;
    db__run_alone(p->ctx, DB_OP_AXPBY, &c);
}

void db_ema_free(const db_param_table *p, float *average)
{
    p->ctx->backend->release(p->ctx, average);
}

double db_lr_factor(db_lr_schedule schedule, double lr, uint64_t step, uint64_t warmup,
                    uint64_t total, double cycles, double power)
{
    const double pi = 3.14159265358979323846;
    double progress, left, end = lr > 1e-7 ? 1e-7 / lr : 1; /* diffusers' lr_end */
    if (schedule == DB_LR_CONSTANT) return 1;
    if (step < warmup) return (double)step / (double)DB__MAX(1, warmup);
    if (schedule == DB_LR_CONSTANT_WITH_WARMUP) return 1;
    progress = (double)(step - warmup) / (double)DB__MAX(1, total - DB__MIN(total, warmup));
    left = (double)(total > step ? total - step : 0) /
        (double)DB__MAX(1, total - DB__MIN(total, warmup));
    switch (schedule) {
    case DB_LR_LINEAR: return left;
    case DB_LR_COSINE: return DB__MAX(0.0, 0.5 * (1 + cos(pi * progress)));
    case DB_LR_COSINE_WITH_RESTARTS:
        return progress >= 1 ? 0 : DB__MAX(0.0, 0.5 * (1 + cos(pi * fmod(cycles * progress, 1))));
    default: return step > total ? end : (1 - end) * pow(left, power) + end; /* polynomial */
    }
}

/* ==== [DB-05] Files: JSON, safetensors ==========================================================

   What a checkpoint directory is made of. JSON (RFC 8259) holds configurations and vocabularies;
   safetensors (the format's README at github.com/huggingface/safetensors) holds the weights:

       8 bytes    N, length of the header, little-endian
       N bytes    JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
       the rest   the tensors' bytes, which the offsets (from here on) cover without gap or overlap

   Every number in a file is somebody else's claim. It is compared with the size of the file before
   anything is allocated or dereferenced, and products go through db__mul.

   Easy to get wrong
   - diffusers writes `"lambda_min_clipped": -Infinity` into scheduler files, which is not JSON.
   - strtod reads "0,5" in a German locale; JSON has the point everywhere.
   - Tensors' bytes are not aligned: a 3-byte BOOL tensor may stand before an F32 one.
   - f32 -> f16 rounds to nearest even, also into the subnormal numbers; 65520 is the first float
     that becomes infinite.
   - A file that is written in place is lost when the machine stops half-way. It is written beside
     its final place, synced, and renamed; then the directory is synced, for the name's sake.     */

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "dreambooth.h reads and writes little-endian files and needs a little-endian machine"
#endif
#endif

/* ---- text under construction ----------------------------------------------------------------- */

/* Grows as it is appended to. A failed allocation sticks in the context and later appends do
   nothing, so that one check at the end is enough. data is NUL-terminated once anything is in. */
typedef struct db__text {
    db_ctx *ctx;
    char *data;
    size_t length, capacity;
} db__text;

static void db__text_append(db__text *t, const char *bytes, size_t n)
{
    void *data = t->data;
    if (t->ctx->result != DB_OK) return;
    if (!(data = db__grow(t->ctx, data, &t->capacity, t->length + n + 1, 1))) return;
    t->data = (char *)data;
    if (n) memcpy(t->data + t->length, bytes, n);
    t->length += n;
    t->data[t->length] = 0;
}

DB__PRINTF(2, 3) static void db__text_print(db__text *t, const char *format, ...)
{
    char small[256];
    va_list args, again;
    int n;
    va_start(args, format);
    va_copy(again, args);
    n = vsnprintf(small, sizeof small, format, args);
    if (n >= 0 && (size_t)n < sizeof small) {
        db__text_append(t, small, (size_t)n);
    } else if (n >= 0) {
        char *large = (char *)db__alloc(t->ctx, (size_t)n + 1, 1);
        if (large) {
            vsnprintf(large, (size_t)n + 1, format, again);
            db__text_append(t, large, (size_t)n);
        }
        db__free(t->ctx, large);
    }
    va_end(again);
    va_end(args);
}

static void db__text_free(db__text *t)
{
    db__free(t->ctx, t->data);
    t->data = NULL;
    t->length = t->capacity = 0;
}

/* A JSON string in its quotes. What is not UTF-8 stays as it is: the caller's strings are text. */
static void db__text_json_string(db__text *t, const char *s)
{
    db__text_append(t, "\"", 1);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') db__text_print(t, "\\%c", c);
        else if (c < 0x20 || c == 0x7F) db__text_print(t, "\\u%04x", c);
        else db__text_append(t, s, 1);
    }
    db__text_append(t, "\"", 1);
}

/* Copies `text` with its decimal point `from` replaced by `to`; returns 0 if out is too small. */
static int db__swap_point(char *out, size_t size, const char *text, const char *from,
                          const char *to)
{
    const char *point = strstr(text, from);
    size_t before = point ? (size_t)(point - text) : strlen(text);
    int n = snprintf(out, size, "%.*s%s%s", (int)before, text, point ? to : "",
                     point ? point + strlen(from) : "");
    return n >= 0 && (size_t)n < size;
}

/* The decimal point of the running program's locale: what stands between the digits of 0.5. */
static void db__locale_point(char out[16])
{
    char half[16];
    size_t n;
    snprintf(half, sizeof half, "%.1f", 0.5);
    n = strlen(half);
    snprintf(out, 16, "%.*s", n > 2 ? (int)n - 2 : 1, half + 1);
}

/* printf into memory of its own; free with db__free. NULL when there is none. */
DB__PRINTF(2, 3) static char *db__format(db_ctx *ctx, const char *format, ...)
{
    char *text;
    va_list args, again;
    int n;
    va_start(args, format);
    va_copy(again, args);
    n = vsnprintf(NULL, 0, format, args);
    text = n < 0 ? NULL : (char *)db__alloc(ctx, (size_t)n + 1, 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* The code point at s, n >= 1 bytes long; returns its length, or 0 when no valid one starts here
   (overlong form, surrogate, above U+10FFFF, cut short). */
static size_t db__utf8_decode(const char *text, size_t n, uint32_t *code)
{
    const unsigned char *s = (const unsigned char *)text;
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xC0 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4, i;
    uint32_t c;
    if (s[0] > 0xF7 || length == 0 || length > n) return 0;
    c = length == 1 ? s[0] : s[0] & (0xFFu >> (length + 1));
    for (i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3Fu);
    }
    if (c < smallest[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    *code = c;
    return length;
}

/* Writes a code point's bytes; returns how many. */
static size_t db__utf8_encode(uint32_t c, char out[4])
{
    size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;
    static const uint32_t lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (i = length; i > 1; i--, c >>= 6) out[i - 1] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(lead[length == 1 ? 0 : length] | c);
    return length;
}

/* ---- reading files --------------------------------------------------------------------------- */

/* A file's bytes: mapped, read into our memory, or (owner == NULL) lent by the caller. */
typedef struct db__mapping {
    const unsigned char *data;
    size_t bytes;
    void *owner;   /* what to unmap or free */
    int is_mapped;
} db__mapping;

static void db__unmap_file(db_ctx *ctx, db__mapping *m)
{
#ifdef DB__POSIX
    if (m->is_mapped) munmap(m->owner, m->bytes);
#endif
    if (!m->is_mapped) db__free(ctx, m->owner);
    memset(m, 0, sizeof *m);
}

/* Reads what is left of a file of unknown length: pipes, and systems without mmap. */
static db_result db__read_all(db_ctx *ctx, const char *path, FILE *file, db__mapping *out)
{
    size_t capacity = 0, got;
    do {
        void *grown = db__grow(ctx, out->owner, &capacity, out->bytes + 65536, 1);
        if (!grown) break;
        out->owner = grown;
        got = fread((char *)out->owner + out->bytes, 1, capacity - out->bytes, file);
        out->bytes += got;
    } while (got > 0);
    if (ctx->result == DB_OK && ferror(file))
        db__fail(ctx, DB_ERROR_FILE, "%s: cannot be read: %s", path, strerror(errno));
    out->data = (const unsigned char *)out->owner;
    if (ctx->result != DB_OK) db__unmap_file(ctx, out);
    return ctx->result;
}

/* Makes a file's bytes readable at out->data, which is not NULL even when there are 0 bytes. */
static db_result db__map_file(db_ctx *ctx, const char *path, db__mapping *out)
{
    FILE *file;
    memset(out, 0, sizeof *out);
    if (ctx->result != DB_OK) return ctx->result;
    file = fopen(path, "rb");
    if (!file)
        return db__fail(ctx, DB_ERROR_FILE, "%s: cannot be opened: %s", path, strerror(errno));
#ifdef DB__POSIX
    {
        struct stat info;
        int known = fstat(fileno(file), &info) == 0;
        if (known && S_ISDIR(info.st_mode)) {
            fclose(file);
            return db__fail(ctx, DB_ERROR_FILE, "%s: is a directory, not a file", path);
        }
        if (known && S_ISREG(info.st_mode) && info.st_size > 0
            && (uintmax_t)info.st_size <= (uintmax_t)((size_t)-1 / 2)) {
            void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fileno(file), 0);
            if (p != MAP_FAILED) {
                out->data = (const unsigned char *)p;
                out->bytes = (size_t)info.st_size;
                out->owner = p;
                out->is_mapped = 1;
                fclose(file);
                return DB_OK;
            }
        }
    }
#endif
    db__read_all(ctx, path, file, out);
    fclose(file);
    return ctx->result;
}

static int db__file_exists(const char *path)
{
    FILE *file = fopen(path, "rb");
    int readable = file && (fgetc(file) != EOF || feof(file)); /* a directory can be opened only */
    if (file) fclose(file);
    return readable;
}

/* ---- writing files --------------------------------------------------------------------------- */

/* A file in the making; it gets its name in db__writer_commit. All zero: nothing to write to. */
typedef struct db__writer {
    db_ctx *ctx;
    FILE *file;
    char *path, *temporary;
} db__writer;

/* Gives the file up: nothing stays on the disk, nothing in memory. */
static void db__writer_abandon(db__writer *w)
{
    if (w->file) fclose(w->file);
    if (w->file) remove(w->temporary);
    if (w->ctx) db__free(w->ctx, w->path);
    if (w->ctx) db__free(w->ctx, w->temporary);
    memset(w, 0, sizeof *w);
}

/* Reports the failure that errno describes and abandons the file. */
static db_result db__writer_fail(db__writer *w, const char *what)
{
    db_ctx *ctx = w->ctx;
    db_result r = db__fail(ctx, DB_ERROR_FILE, "%s: cannot be %s: %s (nothing was changed)",
                           w->path, what, errno ? strerror(errno) : "unknown reason");
    db__writer_abandon(w);
    return r;
}

/* Starts a file that will be called `path`. The temporary name is in the same directory, because a
   rename cannot cross file systems; process and writer make it unique. */
static db_result db__writer_open(db__writer *w, db_ctx *ctx, const char *path)
{
    unsigned long process = 0;
    memset(w, 0, sizeof *w);
    if (ctx->result != DB_OK) return ctx->result;
#ifdef DB__POSIX
    process = (unsigned long)getpid();
#endif
    w->ctx = ctx;
    w->path = db__strdup(ctx, path);
    w->temporary = db__format(ctx, "%s.%lx-%lx.partial", path, process,
                              (unsigned long)((uintptr_t)(void *)w >> 4 & 0xFFFFFFFu));
    if (!w->path || !w->temporary) {
        db__writer_abandon(w);
        return ctx->result;
    }
    errno = 0;
    w->file = fopen(w->temporary, "wb");
    return w->file ? DB_OK : db__writer_fail(w, "created");
}

/* Appends; after a failure the writer is abandoned and further writes report DB_ERROR_FILE. */
static db_result db__writer_write(db__writer *w, const void *data, size_t bytes)
{
    if (!w->file) return DB_ERROR_FILE;
    errno = 0;
    if (bytes && fwrite(data, 1, bytes, w->file) != bytes) return db__writer_fail(w, "written");
    return DB_OK;
}

/* Makes the rename itself durable. Some file systems refuse; then the data is safe all the same. */
static void db__sync_directory_of(char *path)
{
#ifdef DB__POSIX
    char *slash = strrchr(path, '/'), kept = slash ? slash[1] : 0;
    int directory;
    if (slash) slash[1] = 0;
    directory = open(slash ? path : ".", O_RDONLY);
    if (slash) slash[1] = kept;
    if (directory < 0) return;
    if (fsync(directory) != 0) errno = 0;
    close(directory);
#else
    (void)path;
#endif
}

/* Flush, sync, close, rename: now the file is complete under its name. Ends the writer. */
static db_result db__writer_commit(db__writer *w)
{
    int closed;
    if (!w->file) return DB_ERROR_FILE;
    errno = 0;
    if (fflush(w->file) != 0) return db__writer_fail(w, "written");
#ifdef DB__POSIX
    if (fsync(fileno(w->file)) != 0 && errno != EINVAL && errno != ENOTSUP)
        return db__writer_fail(w, "brought to the disk");
#endif
    closed = fclose(w->file) == 0;
    w->file = NULL;
#ifdef _WIN32
    if (closed) remove(w->path); /* rename does not replace there */
#endif
    if (!closed || rename(w->temporary, w->path) != 0) {
        int reason = errno;
        remove(w->temporary);
        errno = reason;
        return db__writer_fail(w, closed ? "renamed into place" : "written");
    }
    db__sync_directory_of(w->path);
    db__writer_abandon(w);
    return DB_OK;
}

/* A whole small file at once. */
static db_result db__write_file(db_ctx *ctx, const char *path, const void *data, size_t bytes)
{
    db__writer w;
    if (db__writer_open(&w, ctx, path) != DB_OK || db__writer_write(&w, data, bytes) != DB_OK)
        return ctx->result;
    return db__writer_commit(&w);
}

/* ---- JSON: parser ----------------------------------------------------------------------------
   Recursive descent. Nodes and strings go into chunks that double in size, freed together.       */

enum { DB__JSON_MAX_DEPTH = 100, DB__JSON_MAX_NUMBER = 255 };

typedef struct db__json_chunk {
    struct db__json_chunk *next;
    size_t used, capacity; /* bytes, this header included */
} db__json_chunk;

typedef struct db__json_document {
    db_json root; /* first, so that the root's address is the document's */
    db_ctx *ctx;
    char *name;   /* the file, for messages */
    db__json_chunk *chunks;
} db__json_document;

typedef struct db__json_parser {
    db__json_document *document;
    const char *text, *at, *end;
    const char *line_start;
    size_t line;
    int depth;
} db__json_parser;

/* "FILE:LINE:COLUMN: not valid JSON: REASON"; columns count characters from 1. Returns 0. */
static int db__json_error(const db__json_parser *p, const char *at, const char *reason)
{
    const char *c;
    size_t column = 1;
    for (c = p->line_start; c < at; c++) column += ((unsigned char)*c & 0xC0) != 0x80;
    db__fail(p->document->ctx, DB_ERROR_FORMAT, "%s:%zu:%zu: not valid JSON: %s", p->document->name,
             p->line, column, reason);
    return 0;
}

/* Zeroed memory that lives as long as the document. */
static void *db__json_take(db__json_document *d, size_t bytes)
{
    db__json_chunk *chunk = d->chunks;
    char *memory;
    bytes = DB__ROUND_UP(bytes, 8);
    if (!chunk || chunk->capacity - chunk->used < bytes) {
        size_t capacity = chunk ? DB__MIN(chunk->capacity * 2, (size_t)1 << 20) : 4096;
        capacity = DB__MAX(capacity, bytes + sizeof *chunk);
        chunk = (db__json_chunk *)db__alloc(d->ctx, capacity, 1);
        if (!chunk) return NULL;
        chunk->next = d->chunks;
        chunk->used = sizeof *chunk;
        chunk->capacity = capacity;
        d->chunks = chunk;
    }
    memory = (char *)chunk + chunk->used;
    chunk->used += bytes;
    return memory;
}

static void db__json_skip_space(db__json_parser *p)
{
    for (; p->at < p->end; p->at++) {
        if (*p->at == '\n') {
            p->line++;
            p->line_start = p->at + 1;
        } else if (*p->at != ' ' && *p->at != '\t' && *p->at != '\r') {
            return;
        }
    }
}

/* Four hexadecimal digits at p->at, or -1. */
static int db__json_hex4(db__json_parser *p)
{
    int value = 0, i;
    if (p->end - p->at < 4) return -1;
    for (i = 0; i < 4; i++) {
        char c = *p->at++;
        int digit = c >= '0' && c <= '9' ? c - '0'
                  : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* What follows a backslash (at least the closing quote does); appends its UTF-8 at *out. */
static int db__json_escape(db__json_parser *p, char **out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *start = p->at - 1, *found;
    int high, low;
    if (*p->at != 'u') {
        found = *p->at ? strchr(from, *p->at) : NULL;
        if (!found) return db__json_error(p, start, "unknown escape after a backslash");
        *(*out)++ = to[found - from];
        p->at++;
        return 1;
    }
    p->at++;
    high = db__json_hex4(p);
    if (high < 0) return db__json_error(p, start, "\\u needs four hexadecimal digits");
    if (high >= 0xD800 && high < 0xDC00) { /* the first half of a character above U+FFFF */
        low = -1;
        if (p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u') {
            p->at += 2;
            low = db__json_hex4(p);
        }
        if (low < 0xDC00 || low > 0xDFFF)
            return db__json_error(p, start, "a high surrogate without its low surrogate");
        high = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    } else if (high >= 0xDC00 && high < 0xE000) {
        return db__json_error(p, start, "a low surrogate without its high surrogate");
    }
    *out += db__utf8_encode((uint32_t)high, *out);
    return 1;
}

/* A string; p->at is at its opening quote. Escapes only ever shorten it, so the distance to the
   closing quote is room enough. */
static int db__json_string_token(db__json_parser *p, const char **string, size_t *length)
{
    const char *start = p->at, *close;
    char *out;
    for (close = start + 1; close < p->end && *close != '"'; close++)
        if (*close == '\\' && close + 1 < p->end) close++;
    if (close == p->end) return db__json_error(p, start, "a string without closing quote");
    out = (char *)db__json_take(p->document, (size_t)(close - start));
    if (!out) return 0;
    *string = out;
    for (p->at++; *p->at != '"';) {
        unsigned char c = (unsigned char)*p->at;
        uint32_t code;
        size_t n;
        if (c == '\\') {
            p->at++;
            if (!db__json_escape(p, &out)) return 0;
            continue;
        }
        if (c < 0x20) return db__json_error(p, p->at, "a control character inside a string");
        n = db__utf8_decode(p->at, (size_t)(close - p->at), &code);
        if (!n) return db__json_error(p, p->at, "bytes that are not UTF-8");
        memcpy(out, p->at, n);
        out += n;
        p->at += n;
    }
    p->at++;
    *length = (size_t)(out - *string);
    return 1;
}

/* Moves over decimal digits, collecting the first 19 significant ones. */
static const char *db__json_digits(const char *c, const char *end, uint64_t *mantissa, int *dropped)
{
    for (; c < end && *c >= '0' && *c <= '9'; c++) {
        if (*mantissa < 1000000000000000000u) *mantissa = *mantissa * 10 + (uint64_t)(*c - '0');
        else *dropped = 1;
    }
    return c;
}

/* The general case: the C library, told about its own decimal point. */
static double db__json_strtod(const char *text, size_t n)
{
    char copy[DB__JSON_MAX_NUMBER + 1], local[DB__JSON_MAX_NUMBER + 16], point[16];
    memcpy(copy, text, n);
    copy[n] = 0;
    db__locale_point(point);
    if (!db__swap_point(local, sizeof local, copy, ".", point)) return 0;
    return strtod(local, NULL);
}

/* A number: -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? */
static int db__json_number_token(db__json_parser *p, db_json *node)
{
    static const double power[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                   1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                   1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *start = p->at, *c = start, *part;
    int negative = *c == '-', dropped = 0, exponent = 0, scale = 0, is_plain = 1;
    uint64_t mantissa = 0;
    c += negative;
    part = c;
    c = db__json_digits(c, p->end, &mantissa, &dropped);
    if (c == part) return db__json_error(p, start, "a value was expected here");
    if (*part == '0' && c - part > 1) return db__json_error(p, part, "a number with leading zeros");
    if (c < p->end && *c == '.') {
        part = ++c;
        c = db__json_digits(c, p->end, &mantissa, &dropped);
        if (c == part) return db__json_error(p, c, "digits must follow the decimal point");
        scale = (int)DB__MIN(c - part, 1000);
        is_plain = 0;
    }
    if (c < p->end && (*c == 'e' || *c == 'E')) {
        int sign = 1;
        c++;
        if (c < p->end && (*c == '+' || *c == '-')) sign = *c++ == '-' ? -1 : 1;
        for (part = c; c < p->end && *c >= '0' && *c <= '9'; c++)
            exponent = DB__MIN(exponent * 10 + (*c - '0'), 100000);
        if (c == part) return db__json_error(p, c, "digits must follow the exponent's e");
        exponent *= sign;
        is_plain = 0;
    }
    if (c - start > DB__JSON_MAX_NUMBER)
        return db__json_error(p, start, "a number with too many digits");

    /* Up to 2^53 and 10^22 everything is exact, so one operation rounds correctly. */
    scale = exponent - scale;
    if (!dropped && mantissa <= (uint64_t)1 << 53 && scale >= -22 && scale <= 22) {
        node->number = (double)mantissa;
        node->number = scale < 0 ? node->number / power[-scale] : node->number * power[scale];
        if (negative) node->number = -node->number;
    } else {
        node->number = db__json_strtod(start, (size_t)(c - start));
    }
    if (node->number - node->number != 0)
        return db__json_error(p, start, "a number too large for a double");
    node->type = DB_JSON_NUMBER;
    if (is_plain && !dropped && mantissa <= (uint64_t)INT64_MAX + (uint64_t)negative) {
        node->is_integer = 1;
        node->integer = (int64_t)(negative ? 0 - mantissa : mantissa);
    } else if (fabs(node->number) <= 9007199254740992.0 && floor(node->number) == node->number) {
        node->is_integer = 1;
        node->integer = (int64_t)node->number;
    }
    p->at = c;
    return 1;
}

/* If `word` stands here, moves over it. */
static int db__json_accept(db__json_parser *p, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n) != 0) return 0;
    p->at += n;
    return 1;
}

static int db__json_value(db__json_parser *p, db_json *node);

/* The children of an array or object; p->at is behind the opening bracket. */
static int db__json_children(db__json_parser *p, db_json *node)
{
    int is_object = node->type == DB_JSON_OBJECT;
    const char *close = is_object ? "}" : "]";
    const db_json **tail = &node->first;
    if (++p->depth > DB__JSON_MAX_DEPTH) return db__json_error(p, p->at - 1, "nested too deeply");
    db__json_skip_space(p);
    if (!db__json_accept(p, close)) {
        do {
            db_json *child = (db_json *)db__json_take(p->document, sizeof *child);
            if (!child) return 0;
            db__json_skip_space(p);
            if (is_object) {
                if (p->at == p->end || *p->at != '"')
                    return db__json_error(p, p->at, "a member's name in quotes was expected here");
                if (!db__json_string_token(p, &child->key, &child->key_length)) return 0;
                db__json_skip_space(p);
                if (!db__json_accept(p, ":"))
                    return db__json_error(p, p->at, "':' was expected here");
            }
            if (!db__json_value(p, child)) return 0;
            *tail = child;
            tail = &child->next;
            node->count++;
            db__json_skip_space(p);
        } while (db__json_accept(p, ","));
        if (!db__json_accept(p, close))
            return db__json_error(p, p->at, is_object ? "',' or '}' was expected here"
                                                      : "',' or ']' was expected here");
    }
    p->depth--;
    return 1;
}

static int db__json_value(db__json_parser *p, db_json *node)
{
    db__json_skip_space(p);
    node->document = p->document;
    node->line = p->line;
    if (p->at == p->end)
        return db__json_error(p, p->at, "the text ends where a value was expected");
    switch (*p->at) {
    case '{': node->type = DB_JSON_OBJECT; p->at++; return db__json_children(p, node);
    case '[': node->type = DB_JSON_ARRAY; p->at++; return db__json_children(p, node);
    case '"':
        node->type = DB_JSON_STRING;
        return db__json_string_token(p, &node->string, &node->length);
    default: break;
    }
    if (db__json_accept(p, "null")) { node->type = DB_JSON_NULL; return 1; }
    node->type = DB_JSON_BOOL;
    if (db__json_accept(p, "true")) { node->integer = 1; return 1; }
    if (db__json_accept(p, "false")) return 1;
    node->type = DB_JSON_NUMBER;
    if (db__json_accept(p, "NaN")) { node->number = (double)NAN; return 1; }
    if (db__json_accept(p, "Infinity")) { node->number = (double)INFINITY; return 1; }
    if (db__json_accept(p, "-Infinity")) { node->number = -(double)INFINITY; return 1; }
    return db__json_number_token(p, node);
}

const db_json *db_json_parse(db_ctx *ctx, const char *name, const char *text, size_t bytes)
{
    db__json_parser p;
    db__json_document *d;
    int ok;
    if (ctx->result != DB_OK) return NULL;
    d = (db__json_document *)db__alloc(ctx, 1, sizeof *d);
    if (!d) return NULL;
    d->ctx = ctx;
    d->name = db__strdup(ctx, name);
    memset(&p, 0, sizeof p);
    p.document = d;
    p.text = p.at = p.line_start = text ? text : "";
    p.end = p.text + bytes;
    p.line = 1;
    ok = d->name && db__json_value(&p, &d->root);
    if (ok) {
        db__json_skip_space(&p);
        if (p.at != p.end) ok = db__json_error(&p, p.at, "something follows the value");
    }
    if (ok) return &d->root;
    db_json_free(&d->root);
    return NULL;
}

const db_json *db_json_load(db_ctx *ctx, const char *path)
{
    db__mapping m;
    const db_json *root;
    if (db__map_file(ctx, path, &m) != DB_OK) return NULL;
    root = db_json_parse(ctx, path, (const char *)m.data, m.bytes);
    db__unmap_file(ctx, &m);
    return root;
}

void db_json_free(const db_json *root)
{
    db__json_document *d = (db__json_document *)(uintptr_t)(const void *)root;
    db_ctx *ctx;
    if (!root) return;
    ctx = d->ctx;
    while (d->chunks) {
        db__json_chunk *next = d->chunks->next;
        db__free(ctx, d->chunks);
        d->chunks = next;
    }
    db__free(ctx, d->name);
    db__free(ctx, d);
}

/* ---- JSON: access ---------------------------------------------------------------------------- */

const db_json *db_json_get(const db_json *object, const char *key)
{
    const db_json *item, *found = NULL;
    size_t n = strlen(key);
    if (!object || object->type != DB_JSON_OBJECT) return NULL;
    for (item = object->first; item; item = item->next)
        if (item->key_length == n && memcmp(item->key, key, n) == 0) found = item;
    return found;
}

const db_json *db_json_at(const db_json *array, size_t index)
{
    const db_json *item;
    if (!array || index >= array->count) return NULL;
    for (item = array->first; index > 0; index--) item = item->next;
    return item;
}

/* The member, or NULL for "use the default"; another type than `type` is an error. */
static const db_json *db__json_member(const db_json *object, const char *key, db_json_type type,
                                      const char *type_name)
{
    static const char *const names[] = {"null", "a boolean", "a number", "a string", "an array",
                                        "an object"};
    const db_json *item = db_json_get(object, key);
    if (!item || item->type == DB_JSON_NULL) return NULL;
    if (item->type == type) return item;
    db__fail(item->document->ctx, DB_ERROR_FORMAT, "%s:%zu: \"%s\" must be %s, but it is %s",
             item->document->name, item->line, key, type_name, names[item->type]);
    return NULL;
}

double db_json_number(const db_json *object, const char *key, double otherwise)
{
    const db_json *item = db__json_member(object, key, DB_JSON_NUMBER, "a number");
    return item ? item->number : otherwise;
}

int64_t db_json_int(const db_json *object, const char *key, int64_t otherwise)
{
    const db_json *item = db__json_member(object, key, DB_JSON_NUMBER, "an integer");
    if (item && !item->is_integer) {
        db__fail(item->document->ctx, DB_ERROR_FORMAT, "%s:%zu: \"%s\" must be an integer, not %g",
                 item->document->name, item->line, key, item->number);
        return otherwise;
    }
    return item ? item->integer : otherwise;
}

int db_json_bool(const db_json *object, const char *key, int otherwise)
{
    const db_json *item = db__json_member(object, key, DB_JSON_BOOL, "true or false");
    return item ? (int)item->integer : otherwise;
}

const char *db_json_string(const db_json *object, const char *key, const char *otherwise)
{
    const db_json *item = db__json_member(object, key, DB_JSON_STRING, "a string");
    return item ? item->string : otherwise;
}

/* ---- safetensors: reading -------------------------------------------------------------------- */

typedef struct db__shard {
    char *name;            /* the file, for messages   */
    db__mapping map;
    const db_json *header; /* owns the tensors' names  */
} db__shard;

struct db_safetensors {
    db_ctx *ctx;
    db__shard *shard;
    size_t shard_count, shard_capacity;
    db_file_tensor *tensor;              /* in the files' order      */
    size_t count, capacity;
    const db_file_tensor **by_name;      /* the same, sorted by name */
    size_t shared;                       /* users besides the first  */
};

/* The format's own limit. The header's true length is bounded by the file besides. */
static const uint64_t db__safetensors_max_header = 100000000;

/* The number of elements and the dimensions of a "shape" array; 0 when it is not one. */
static int db__read_shape(const db_json *shape, db_file_tensor *t)
{
    const db_json *item;
    int overflow = 0;
    if (!shape || shape->type != DB_JSON_ARRAY || shape->count > DB_FILE_MAX_DIMS) return 0;
    t->count = 1;
    for (item = shape->first; item; item = item->next) {
        if (!item->is_integer || item->integer < 0) return 0;
        if ((uint64_t)item->integer > (size_t)-1) return 0;
        t->dim[t->n_dims++] = (size_t)item->integer;
        t->count = db__mul(t->count, (size_t)item->integer, &overflow);
    }
    t->bytes = db__mul(t->count, db_dtype_size(t->dtype), &overflow);
    return !overflow;
}

/* "FILE: tensor NAME: ..." */
DB__PRINTF(5, 6) static db_result db__fail_tensor(db_ctx *ctx, db_result code, const char *file,
                                                  const char *tensor, const char *format, ...)
{
    char reason[512];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return db__fail(ctx, code, "%s: tensor %s: %s", file, tensor, reason);
}

/* Checks one entry of the header against the size of the data that follows it. */
static db_result db__read_entry(db_ctx *ctx, const db__shard *shard, const db_json *entry,
                                size_t header_bytes, db_file_tensor *t)
{
    const char *file = shard->name, *name = entry->key;
    const char *dtype = db_json_string(entry, "dtype", "");
    const db_json *offsets = db_json_get(entry, "data_offsets");
    const db_json *begin = db_json_at(offsets, 0), *end = db_json_at(offsets, 1);
    size_t room = shard->map.bytes - header_bytes;
    uint64_t span;
    int d = 0;
    memset(t, 0, sizeof *t);
    t->name = name;
    if (strlen(name) != entry->key_length)
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name, "its name contains a NUL");
    if (entry->type != DB_JSON_OBJECT)
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name, "its entry is not an object");

    while (d < DB_DTYPE_COUNT && strcmp(db__dtypes[d].name, dtype) != 0) d++;
    if (d == DB_DTYPE_COUNT)
        return db__fail_tensor(ctx, DB_ERROR_UNSUPPORTED, file, name, "element type \"%s\" is not"
                               " supported (convert it to F32, F16 or BF16)", dtype);
    t->dtype = (db_dtype)d;
    if (!db__read_shape(db_json_get(entry, "shape"), t))
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name, "\"shape\" is not an array of at"
                               " most %d sizes with a product that fits", DB_FILE_MAX_DIMS);

    if (!offsets || offsets->count != 2 || !begin->is_integer || !end->is_integer
        || begin->integer < 0 || end->integer < begin->integer)
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name,
                               "\"data_offsets\" is not [begin, end]");
    if ((uint64_t)end->integer > room)
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name, "its data ends at byte %" PRId64
                               ", but there are %zu bytes of data (is the download complete?)",
                               end->integer, room);
    span = (uint64_t)(end->integer - begin->integer);
    if (span != t->bytes)
        return db__fail_tensor(ctx, DB_ERROR_FORMAT, file, name, "%zu elements of type %s are %zu"
                               " bytes, but its offsets span %" PRIu64, t->count, dtype, t->bytes,
                               span);
    t->data = shard->map.data + header_bytes + begin->integer;
    return DB_OK;
}

static int db__by_place(const void *a, const void *b)
{
    const db_file_tensor *x = *(const db_file_tensor *const *)a;
    const db_file_tensor *y = *(const db_file_tensor *const *)b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones before what follows them */
}

static int db__by_name(const void *a, const void *b)
{
    const db_file_tensor *x = *(const db_file_tensor *const *)a;
    const db_file_tensor *y = *(const db_file_tensor *const *)b;
    return strcmp(x->name, y->name);
}

/* `count` tensors as an array of pointers, sorted; free with db__free. */
static const db_file_tensor **db__sorted(db_ctx *ctx, const db_file_tensor *tensor, size_t count,
                                         int (*compare)(const void *, const void *))
{
    const db_file_tensor **sorted =
        (const db_file_tensor **)db__alloc(ctx, DB__MAX(count, 1), sizeof *sorted);
    size_t i;
    if (!sorted) return NULL;
    for (i = 0; i < count; i++) sorted[i] = tensor + i;
    qsort((void *)sorted, count, sizeof *sorted, compare);
    return sorted;
}

/* The tensors' bytes must follow each other exactly, from the first byte to the last. */
static db_result db__check_coverage(db_ctx *ctx, const db__shard *shard, size_t header_bytes,
                                    const db_file_tensor *tensor, size_t count)
{
    const db_file_tensor **sorted = db__sorted(ctx, tensor, count, db__by_place);
    const unsigned char *expected = shard->map.data + header_bytes;
    const unsigned char *end = shard->map.data + shard->map.bytes;
    size_t i;
    for (i = 0; sorted && i < count; i++) {
        const unsigned char *begin = (const unsigned char *)sorted[i]->data;
        if (begin != expected) {
            db__fail_tensor(ctx, DB_ERROR_FORMAT, shard->name, sorted[i]->name, "%s",
                            begin < expected ? "overlaps another one" : "begins behind a gap");
            break;
        }
        expected = begin + sorted[i]->bytes;
    }
    if (ctx->result == DB_OK && expected != end)
        db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu bytes at its end belong to no tensor", shard->name,
                 (size_t)(end - expected));
    db__free(ctx, (void *)sorted);
    return ctx->result;
}

/* Reads the header of the last shard and appends its tensors. */
static db_result db__read_header(db_safetensors *st)
{
    db_ctx *ctx = st->ctx;
    db__shard *shard = &st->shard[st->shard_count - 1];
    const db_json *entry;
    size_t header_bytes, first = st->count;
    void *tensors = st->tensor;
    uint64_t length = 0;
    int i;
    if (shard->map.bytes < 8)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu bytes are too few for a safetensors file",
                        shard->name, shard->map.bytes);
    for (i = 7; i >= 0; i--) length = length << 8 | shard->map.data[i];
    if (length > db__safetensors_max_header || length > shard->map.bytes - 8)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: not a safetensors file, or cut short: its header"
                        " claims %" PRIu64 " bytes, the file has %zu", shard->name, length,
                        shard->map.bytes);
    header_bytes = 8 + (size_t)length;
    if (length == 0 || shard->map.data[8] != '{')
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: not a safetensors file: its header does not"
                        " start with {", shard->name);
    shard->header = db_json_parse(ctx, shard->name, (const char *)shard->map.data + 8,
                                  (size_t)length);
    if (!shard->header) return ctx->result;
    tensors = db__grow(ctx, tensors, &st->capacity, st->count + shard->header->count + 1,
                       sizeof *st->tensor);
    if (!tensors) return ctx->result;
    st->tensor = (db_file_tensor *)tensors;
    for (entry = shard->header->first; entry; entry = entry->next) {
        if (strcmp(entry->key, "__metadata__") == 0) continue;
        if (db__read_entry(ctx, shard, entry, header_bytes, &st->tensor[st->count]) != DB_OK)
            return ctx->result;
        st->count++;
    }
    return db__check_coverage(ctx, shard, header_bytes, st->tensor + first, st->count - first);
}

/* Appends a shard that has just been mapped (and owns the mapping from here on). */
static db_result db__add_shard(db_safetensors *st, const char *name, db__mapping *map)
{
    void *shards = st->shard;
    db__shard *shard;
    if (!(shards =
              db__grow(st->ctx, shards, &st->shard_capacity, st->shard_count + 1, sizeof *shard))) {
        db__unmap_file(st->ctx, map);
        return st->ctx->result;
    }
    st->shard = (db__shard *)shards;
    shard = &st->shard[st->shard_count++];
    shard->map = *map;
    shard->name = db__strdup(st->ctx, name);
    return shard->name ? db__read_header(st) : st->ctx->result;
}

static db_safetensors *db__new_safetensors(db_ctx *ctx)
{
    db_safetensors *st;
    if (ctx->result != DB_OK) return NULL;
    st = (db_safetensors *)db__alloc(ctx, 1, sizeof *st);
    if (st) st->ctx = ctx;
    return st;
}

/* Sorts by name, refuses a name that comes twice, and hands over; on an error closes instead. */
static db_result db__finish_open(db_safetensors *st, db_safetensors **out)
{
    db_ctx *ctx = st->ctx;
    size_t i;
    if (ctx->result == DB_OK) st->by_name = db__sorted(ctx, st->tensor, st->count, db__by_name);
    for (i = 1; ctx->result == DB_OK && i < st->count; i++)
        if (strcmp(st->by_name[i - 1]->name, st->by_name[i]->name) == 0)
            db__fail_tensor(ctx, DB_ERROR_FORMAT, st->shard[0].name, st->by_name[i]->name,
                            "is there twice");
    if (ctx->result == DB_OK) *out = st;
    else db_safetensors_close(st);
    return ctx->result;
}

db_result db_safetensors_open_memory(db_ctx *ctx, const char *name, const void *data, size_t bytes,
                                     db_safetensors **out)
{
    db_safetensors *st = db__new_safetensors(ctx);
    db__mapping map;
    *out = NULL;
    if (!st) return ctx->result;
    memset(&map, 0, sizeof map);
    map.data = (const unsigned char *)data;
    map.bytes = bytes;
    db__add_shard(st, name, &map);
    return db__finish_open(st, out);
}

db_result db_safetensors_open(db_ctx *ctx, const char *path, db_safetensors **out)
{
    db_safetensors *st = db__new_safetensors(ctx);
    db__mapping map;
    *out = NULL;
    if (!st) return ctx->result;
    if (db__map_file(ctx, path, &map) == DB_OK) db__add_shard(st, path, &map);
    return db__finish_open(st, out);
}

/* Opens each file that an index names, in the order of first mention. */
static db_result db__open_index(db_safetensors *st, const char *directory, const char *index_path,
                                const db_json *index)
{
    db_ctx *ctx = st->ctx;
    const db_json *map = db_json_get(index, "weight_map"), *item;
    if (index && (!map || map->type != DB_JSON_OBJECT || map->count == 0))
        db__fail(ctx, DB_ERROR_FORMAT, "%s: has no \"weight_map\" object", index_path);
    for (item = map ? map->first : NULL; item && ctx->result == DB_OK; item = item->next) {
        db__mapping file;
        char *path;
        size_t i = 0;
        if (item->type != DB_JSON_STRING || strlen(item->string) != item->length
            || strpbrk(item->string, "/\\:")) {
            db__fail(ctx, DB_ERROR_FORMAT, "%s:%zu: %s: the shard is not a file name", index_path,
                     item->line, item->key);
            break;
        }
        path = db__format(ctx, "%s/%s", directory, item->string);
        while (path && i < st->shard_count && strcmp(st->shard[i].name, path) != 0) i++;
        if (path && i == st->shard_count && db__map_file(ctx, path, &file) == DB_OK)
            db__add_shard(st, path, &file);
        db__free(ctx, path);
    }
    return ctx->result;
}

/* Everything the index lists must have been in the shards. */
static db_result db__check_index(db_ctx *ctx, const char *index_path, const db_json *index,
                                 const db_safetensors *st)
{
    const db_json *item;
    for (item = db_json_get(index, "weight_map")->first; item; item = item->next)
        if (!db_safetensors_find(st, item->key)) {
            db__fail(ctx, DB_ERROR_MISSING, "%s:%zu: lists tensor %s, which no shard has",
                     index_path, item->line, item->key);
            break;
        }
    return ctx->result;
}

db_result db_weights_open(db_ctx *ctx, const char *directory, const char *basename,
                          db_safetensors **out)
{
    static const char *const endings[] = {".safetensors", ".safetensors.index.json",
                                          ".fp16.safetensors", ".safetensors.index.fp16.json"};
    db_result result = DB_ERROR_MISSING;
    int i, found = 0;
    *out = NULL;
    if (ctx->result != DB_OK) return ctx->result;
    for (i = 0; i < 4 && !found; i++) {
        char *path = db__format(ctx, "%s/%s%s", directory, basename, endings[i]);
        if (!path) return ctx->result;
        found = db__file_exists(path);
        if (found && i % 2 == 0) {
            result = db_safetensors_open(ctx, path, out);
        } else if (found) {
            db_safetensors *st = db__new_safetensors(ctx);
            const db_json *index = db_json_load(ctx, path);
            if (st) {
                db__open_index(st, directory, path, index);
                result = db__finish_open(st, out);
            }
            if (*out && db__check_index(ctx, path, index, *out) != DB_OK) {
                db_safetensors_close(*out);
                *out = NULL;
            }
            db_json_free(index);
            result = ctx->result;
        }
        db__free(ctx, path);
    }
    if (found) return result;
    return db__fail(ctx, DB_ERROR_MISSING, "%s: no weights: neither %s.safetensors nor its .fp16 or"
                    " .index.json form is there (.bin and .ckpt files are not read)", directory,
                    basename);
}

void db_safetensors_close(db_safetensors *st)
{
    size_t i;
    if (!st || st->shared-- > 0) return;
    for (i = 0; i < st->shard_count; i++) {
        db_json_free(st->shard[i].header);
        db__unmap_file(st->ctx, &st->shard[i].map);
        db__free(st->ctx, st->shard[i].name);
    }
    db__free(st->ctx, (void *)st->by_name);
    db__free(st->ctx, st->tensor);
    db__free(st->ctx, st->shard);
    db__free(st->ctx, st);
}

/* Gives a tensor's pages of a mapped file back, once it has been read. */
static void db__file_tensor_forget(const db_safetensors *st, const db_file_tensor *f)
{
#ifdef MADV_DONTNEED
    size_t page = (size_t)sysconf(_SC_PAGESIZE), i;
    uintptr_t first = ((uintptr_t)f->data + page - 1) / page * page,
              last = ((uintptr_t)f->data + f->bytes) / page * page;
    for (i = 0; i < st->shard_count && first < last; i++) {
        const db__mapping *m = &st->shard[i].map;
        uintptr_t start = (uintptr_t)m->data;
        if (m->is_mapped && first >= start && last <= start + m->bytes)
            madvise((void *)first, last - first, MADV_DONTNEED);
    }
#else
    (void)st, (void)f;
#endif
}

size_t db_safetensors_count(const db_safetensors *st) { return st->count; }

const db_file_tensor *db_safetensors_at(const db_safetensors *st, size_t index)
{
    return index < st->count ? &st->tensor[index] : NULL;
}

const db_file_tensor *db_safetensors_find(const db_safetensors *st, const char *name)
{
    size_t low = 0, high = st->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, st->by_name[middle]->name);
        if (order == 0) return st->by_name[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

const char *db_safetensors_metadata(const db_safetensors *st, const char *key)
{
    const db_json *item = db_json_get(db_json_get(st->shard[0].header, "__metadata__"), key);
    return item && item->type == DB_JSON_STRING ? item->string : NULL;
}

void db_file_tensor_to_f32(const db_file_tensor *tensor, float *out)
{
    const unsigned char *in = (const unsigned char *)tensor->data;
    size_t n = tensor->count, i;
    /* One loop per type: load an element of C type `type` into v, convert it. */
#define DB__CONVERT(type, expression)                                                              \
    for (i = 0; i < n; i++) {                                                                      \
        type v;                                                                                    \
        memcpy(&v, in + i * sizeof v, sizeof v);                                                   \
        out[i] = expression;                                                                       \
    }                                                                                              \
    break
    switch (tensor->dtype) {
    case DB_F32:
        if (n) memcpy(out, in, n * sizeof *out);
        break;
    case DB_F64: DB__CONVERT(double, (float)v);
    case DB_F16: DB__CONVERT(uint16_t, db__f16_to_f32(v));
    case DB_BF16: DB__CONVERT(uint16_t, db__bf16_to_f32(v));
    case DB_I64: DB__CONVERT(int64_t, (float)v);
    case DB_I32: DB__CONVERT(int32_t, (float)v);
    case DB_I16: DB__CONVERT(int16_t, (float)v);
    case DB_I8: DB__CONVERT(int8_t, (float)v);
    case DB_U8: DB__CONVERT(uint8_t, (float)v);
    case DB_BOOL: DB__CONVERT(uint8_t, v ? 1.0f : 0.0f);
    case DB_DTYPE_COUNT: break;
    }
#undef DB__CONVERT
}

/* ---- safetensors: writing -------------------------------------------------------------------- */

struct db_safetensors_writer {
    db_ctx *ctx;
    db__writer file;
    db_result result;       /* the first failure            */
    db_file_tensor *tensor; /* declared; names are our own  */
    size_t count, capacity;
    size_t written;         /* tensors whose data is out    */
    int begun;              /* the header is out            */
    db__text metadata;      /* members of __metadata__      */
};

db_safetensors_writer *db_safetensors_create(db_ctx *ctx, const char *path)
{
    db_safetensors_writer *w;
    if (ctx->result != DB_OK) return NULL;
    w = (db_safetensors_writer *)db__alloc(ctx, 1, sizeof *w);
    if (!w) return NULL;
    w->ctx = w->metadata.ctx = ctx;
    db__text_print(&w->metadata, "\"format\":\"pt\"");
    if (db__writer_open(&w->file, ctx, path) == DB_OK && ctx->result == DB_OK) return w;
    db_safetensors_abandon(w);
    return NULL;
}

/* Notes the context's error as the writer's own. */
static db_result db__writer_note(db_safetensors_writer *w)
{
    if (w->result == DB_OK) w->result = w->ctx->result;
    return w->result;
}

/* Fails unless the header can still be changed. */
static db_result db__writer_declaring(db_safetensors_writer *w, const char *what)
{
    if (w->begun && w->result == DB_OK)
        db__fail(w->ctx, DB_ERROR_ARGUMENT, "%s: %s was declared after the first tensor was"
                 " written", w->file.path, what);
    return db__writer_note(w);
}

db_result db_safetensors_add_metadata(db_safetensors_writer *w, const char *key, const char *value)
{
    if (!w) return DB_ERROR_ARGUMENT;
    if (db__writer_declaring(w, key) != DB_OK) return w->result;
    db__text_append(&w->metadata, ",", 1);
    db__text_json_string(&w->metadata, key);
    db__text_append(&w->metadata, ":", 1);
    db__text_json_string(&w->metadata, value);
    return db__writer_note(w);
}

db_result db_safetensors_declare(db_safetensors_writer *w, const char *name, db_dtype dtype,
                                 int n_dims, const size_t *dim)
{
    db_file_tensor *t;
    void *tensors;
    int overflow = 0, i;
    if (!w) return DB_ERROR_ARGUMENT;
    if (db__writer_declaring(w, name) != DB_OK) return w->result;
    if (n_dims < 0 || n_dims > DB_FILE_MAX_DIMS || !db_dtype_size(dtype)) {
        db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, name,
                        "%d dimensions or element type %d: out of range", n_dims, (int)dtype);
        return db__writer_note(w);
    }
    tensors = w->tensor;
    if (!(tensors = db__grow(w->ctx, tensors, &w->capacity, w->count + 1, sizeof *t)))
        return db__writer_note(w);
    w->tensor = (db_file_tensor *)tensors;
    t = &w->tensor[w->count];
    t->name = db__strdup(w->ctx, name);
    if (!t->name) return db__writer_note(w);
    w->count++;
    t->dtype = dtype;
    t->n_dims = n_dims;
    t->count = 1;
    for (i = 0; i < n_dims; i++) t->count = db__mul(t->count, t->dim[i] = dim[i], &overflow);
    t->bytes = db__mul(t->count, db_dtype_size(dtype), &overflow);
    if (overflow)
        db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, name, "its shape overflows");
    return db__writer_note(w);
}

/* Writes the header, once, when all declarations are in. */
static db_result db__writer_begin(db_safetensors_writer *w)
{
    static const char eight_spaces[] = "        ";
    const db_file_tensor **sorted;
    db__text text;
    unsigned char prefix[8];
    size_t i, offset = 0;
    int d;
    if (w->begun || w->result != DB_OK) return w->result;
    w->begun = 1;
    sorted = db__sorted(w->ctx, w->tensor, w->count, db__by_name);
    for (i = 1; sorted && i < w->count; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, sorted[i]->name,
                            "was declared twice");
    db__free(w->ctx, (void *)sorted);
    memset(&text, 0, sizeof text);
    text.ctx = w->ctx;
    db__text_print(&text, "{\"__metadata__\":{");
    db__text_append(&text, w->metadata.data, w->metadata.length);
    db__text_print(&text, "}");
    for (i = 0; i < w->count; i++) {
        const db_file_tensor *t = &w->tensor[i];
        db__text_print(&text, ",");
        db__text_json_string(&text, t->name);
        db__text_print(&text, ":{\"dtype\":\"%s\",\"shape\":[", db_dtype_name(t->dtype));
        for (d = 0; d < t->n_dims; d++) db__text_print(&text, d ? ",%zu" : "%zu", t->dim[d]);
        db__text_print(&text, "],\"data_offsets\":[%zu,%zu]}", offset, offset + t->bytes);
        offset += t->bytes;
    }
    db__text_print(&text, "}");
    /* Spaces bring the data to a multiple of 8. */
    db__text_append(&text, eight_spaces, (8 - text.length % 8) % 8);
    for (i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)text.length >> 8 * i);
    if (db__writer_note(w) == DB_OK) {
        db__writer_write(&w->file, prefix, 8);
        db__writer_write(&w->file, text.data, text.length);
    }
    db__text_free(&text);
    return db__writer_note(w);
}

/* The tensor that `name` must be: the next one. NULL with the error noted otherwise. */
static const db_file_tensor *db__writer_next(db_safetensors_writer *w, const char *name)
{
    const db_file_tensor *t;
    if (db__writer_begin(w) != DB_OK) return NULL;
    t = w->written < w->count ? &w->tensor[w->written] : NULL;
    if (t && strcmp(t->name, name) == 0) {
        w->written++;
        return t;
    }
    db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, name,
                    "was written where %s was declared", t ? t->name : "nothing more");
    db__writer_note(w);
    return NULL;
}

db_result db_safetensors_write(db_safetensors_writer *w, const char *name, const void *data)
{
    const db_file_tensor *t;
    if (!w) return DB_ERROR_ARGUMENT;
    t = db__writer_next(w, name);
    if (t) db__writer_write(&w->file, data, t->bytes);
    return db__writer_note(w);
}

db_result db_safetensors_write_f32(db_safetensors_writer *w, const char *name, const float *data)
{
    enum { PIECE = 2048 };
    const db_file_tensor *t;
    size_t i, j, n;
    double f64[PIECE];
    uint16_t f16[PIECE];
    if (!w) return DB_ERROR_ARGUMENT;
    t = db__writer_next(w, name);
    if (!t) return w->result;
    if (t->dtype != DB_F64 && t->dtype != DB_F32 && t->dtype != DB_F16
        && t->dtype != DB_BF16)
        db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, name,
                        "floats cannot be written as %s", db_dtype_name(t->dtype));
    for (i = 0; i < t->count && db__writer_note(w) == DB_OK; i += n) {
        n = DB__MIN(t->count - i, (size_t)PIECE);
        if (t->dtype == DB_F32) {
            db__writer_write(&w->file, data + i, n * sizeof *data);
        } else if (t->dtype == DB_F64) {
            for (j = 0; j < n; j++) f64[j] = data[i + j];
            db__writer_write(&w->file, f64, n * sizeof *f64);
        } else {
            for (j = 0; j < n; j++)
                f16[j] = t->dtype == DB_F16 ? db__f32_to_f16(data[i + j])
                                                 : db__f32_to_bf16(data[i + j]);
            db__writer_write(&w->file, f16, n * sizeof *f16);
        }
    }
    return db__writer_note(w);
}

void db_safetensors_abandon(db_safetensors_writer *w)
{
    size_t i;
    if (!w) return;
    db__writer_abandon(&w->file);
    for (i = 0; i < w->count; i++) db__free(w->ctx, (void *)(uintptr_t)w->tensor[i].name);
    db__free(w->ctx, w->tensor);
    db__text_free(&w->metadata);
    db__free(w->ctx, w);
}

db_result db_safetensors_finish(db_safetensors_writer *w)
{
    db_result result;
    if (!w) return DB_ERROR_ARGUMENT;
    if (db__writer_note(w) == DB_OK && db__writer_begin(w) == DB_OK && w->written < w->count) {
        db__fail_tensor(w->ctx, DB_ERROR_ARGUMENT, w->file.path, w->tensor[w->written].name,
                        "was declared but never written");
        db__writer_note(w);
    }
    if (w->result == DB_OK) w->result = db__writer_commit(&w->file);
    result = w->result;
    db_safetensors_abandon(w);
    return result;
}

/* ==== [DB-06] Tokenizers ========================================================================

   Two kinds, by what the pre-trained text encoders were trained with.

   SentencePiece unigram (Kudo, 2018; Kudo and Richardson, 2018), for T5 and so for DeepFloyd IF.
   The text is normalised, a space becomes U+2581 and one is put in front; then, of all ways to cut
   the text into pieces of the vocabulary, the one whose log probabilities add up to most is taken
   (Viterbi). The facts are the sentencepiece library's: its model format and its EncodeAsIds.

   CLIP's byte-level pair encoding (Radford et al., 2021; Sennrich et al., 2016), for Stable
   Diffusion. The text is composed (NFC), put into lower case and cut into words; the bytes of a
   word are merged pair by pair. The facts are transformers' CLIPTokenizer's.

   Easy to get wrong
   - Ties. Sums are floats, and only a larger one replaces the best so far; pieces are tried in the
     order of their start. (So does version 0.2.3; in early 2025 the library still compared in
     double precision, which can choose the other of "0|00" and "00|0".)
   - A character that no piece covers costs the worst piece's score - 10, and a run of such
     characters becomes one <unk>.
   - Normalisation takes the longest rule that starts at a byte, and a rule may give nothing or
     several spaces. Only U+0020 is a space; runs and both ends are trimmed after the rules.
   - User-defined symbols are found in the raw text, before any rule, and score 0.1 * (bytes - 1):
     they win over almost anything, the longer ones first.
   - Truncation keeps </s>: a prompt of 77 ids has 76 of its own.
   - T5: "</s>" or "<extra_id_0>" in a prompt are letters and signs, as for sentencepiece;
     transformers would take them for markers. CLIP: "<|endoftext|>" in a prompt is the marker (in
     small letters; where a file says "normalized", transformers' is so in capitals, too).
   - CLIP pads with <|endoftext|> in Stable Diffusion 1, with "!" in 2: tokenizer files say which.
   - CLIP: 's 't 're 've 'm 'll 'd are words of their own only where a word starts with the
     apostrophe: "!'s" is "!'" and "s".                                                         */

enum { /* types of pieces in the file */
    DB__PIECE_NORMAL = 1, DB__PIECE_UNKNOWN = 2, DB__PIECE_CONTROL = 3, DB__PIECE_USER = 4,
    DB__PIECE_UNUSED = 5, DB__PIECE_BYTE = 6
};

typedef struct db__piece {
    const char *text; /* NUL-terminated, in db_tokenizer.texts */
    uint32_t length;
    int type;
    float score;
} db__piece;

struct db_tokenizer {
    db_ctx *ctx;
    db_tokenizer_kind kind;
    db__piece *piece;        /* [size], by id                                          */
    size_t size;
    char *texts;
    const db__piece **sorted; /* [sorted_count]: what text can contain, by bytes       */
    size_t sorted_count;
    int32_t special[4];      /* by db_special; -1 for none                             */
    int32_t byte_id[256];    /* T5: byte fallback; CLIP: a byte inside a word; or -1   */

    /* SentencePiece's normaliser */
    int add_dummy_prefix, remove_extra_spaces, escape_spaces, space_is_suffix;
    int byte_fallback, has_user_symbols;
    float min_score;            /* of the normal pieces                                */
    unsigned char *charsmap;    /* double array, then replacement strings              */
    size_t charsmap_units, charsmap_bytes;

    /* CLIP */
    int32_t last_byte_id[256];  /* a word's last byte, with </w>; -1 for none          */
    struct db__merge *merge;    /* [merge_count], by pair                              */
    size_t merge_count, merge_capacity;
    struct db__unicode *unicode;
};

typedef struct db__merge {
    uint64_t pair;   /* left id << 32 | right id */
    int32_t rank;    /* its line in merges.txt   */
    int32_t result;  /* the id of both together  */
} db__merge;

static const char db__space_symbol[] = "\xe2\x96\x81"; /* U+2581 */

static void db__free_unicode(db_ctx *ctx, struct db__unicode *u);

static db_tokenizer *db__new_tokenizer(db_ctx *ctx, db_tokenizer_kind kind)
{
    db_tokenizer *tok;
    int i;
    if (ctx->result != DB_OK) return NULL;
    tok = (db_tokenizer *)db__alloc(ctx, 1, sizeof *tok);
    if (!tok) return NULL;
    tok->ctx = ctx;
    tok->kind = kind;
    tok->add_dummy_prefix = tok->remove_extra_spaces = tok->escape_spaces = 1; /* the defaults */
    for (i = 0; i < 4; i++) tok->special[i] = -1;
    for (i = 0; i < 256; i++) tok->byte_id[i] = tok->last_byte_id[i] = -1;
    return tok;
}

void db_tokenizer_free(db_tokenizer *tok)
{
    if (!tok) return;
    db__free(tok->ctx, tok->piece);
    db__free(tok->ctx, tok->texts);
    db__free(tok->ctx, (void *)tok->sorted);
    db__free(tok->ctx, tok->charsmap);
    db__free(tok->ctx, tok->merge);
    db__free_unicode(tok->ctx, tok->unicode);
    db__free(tok->ctx, tok);
}

/* Hands a tokenizer over when all went well, and frees it otherwise. */
static db_result db__finish_tokenizer(db_tokenizer *tok, db_tokenizer **out)
{
    db_result result = tok->ctx->result;
    if (result == DB_OK) *out = tok;
    else db_tokenizer_free(tok);
    return result;
}

/* ---- pieces in order -------------------------------------------------------------------------
   The pieces that begin with the bytes read so far are neighbours in the sorted order. Each further
   byte narrows that range; a piece that ends here comes first in it.                             */

typedef struct db__range {
    size_t first, end, depth; /* sorted[first .. end) agree in their first `depth` bytes */
} db__range;

static int db__by_piece_text(const void *a, const void *b)
{
    const db__piece *x = *(const db__piece *const *)a, *y = *(const db__piece *const *)b;
    int order = memcmp(x->text, y->text, DB__MIN(x->length, y->length));
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

/* The first position in the range whose next byte is not below `byte` (0 ... 256). */
static size_t db__range_bound(const db_tokenizer *tok, const db__range *r, int byte)
{
    size_t low = r->first, high = r->end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const db__piece *p = tok->sorted[middle];
        int there = p->length > r->depth ? (unsigned char)p->text[r->depth] : -1;
        if (there < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Adds a byte. Returns 0 when nothing begins that way. */
static int db__range_narrow(const db_tokenizer *tok, db__range *r, char byte)
{
    size_t first = db__range_bound(tok, r, (unsigned char)byte);
    r->end = db__range_bound(tok, r, (unsigned char)byte + 1);
    r->first = first;
    r->depth++;
    return r->first < r->end;
}

/* The piece that is exactly the bytes read, or NULL. */
static const db__piece *db__range_piece(const db_tokenizer *tok, const db__range *r)
{
    const db__piece *p = r->first < r->end ? tok->sorted[r->first] : NULL;
    return p && p->length == r->depth ? p : NULL;
}

static db__range db__range_all(const db_tokenizer *tok)
{
    db__range r;
    r.first = r.depth = 0;
    r.end = tok->sorted_count;
    return r;
}

/* ---- spiece.model ----------------------------------------------------------------------------
   A protobuf message: fields of (number << 3 | wire type), then a varint (0), 8 bytes (1), a length
   and bytes (2), or 4 bytes (5). ModelProto: 1 pieces {1 text, 2 score, 3 type}, 2 trainer {3 model
   type, 24 space as suffix, 35 byte fallback}, 3 normaliser {2 charsmap, 3 dummy prefix, 4 remove
   extra spaces, 5 escape spaces}.                                                                */

typedef struct db__field {
    uint32_t number;
    int wire;
    uint64_t value;            /* wire types 0, 1, 5 */
    const unsigned char *data; /* wire type 2        */
    size_t length;
} db__field;

typedef struct db__message {
    const unsigned char *at, *end;
    int bad; /* not a valid message */
} db__message;

static uint64_t db__wire_varint(db__message *m)
{
    uint64_t value = 0;
    int shift;
    for (shift = 0; shift < 64 && m->at < m->end; shift += 7) {
        unsigned char c = *m->at++;
        value |= (uint64_t)(c & 0x7F) << shift;
        if (c < 0x80) return value;
    }
    m->bad = 1;
    return 0;
}

/* The next field; 0 at the end or when the message is bad. */
static int db__wire_next(db__message *m, db__field *f)
{
    uint64_t tag, length = 0;
    size_t i;
    if (m->bad || m->at == m->end) return 0;
    memset(f, 0, sizeof *f);
    tag = db__wire_varint(m);
    f->number = (uint32_t)(tag >> 3);
    f->wire = (int)(tag & 7);
    if (tag >> 32 || f->number == 0) m->bad = 1;
    if (m->bad) return 0;
    switch (f->wire) {
    case 0: f->value = db__wire_varint(m); return !m->bad;
    case 1: length = 8; break;
    case 2: length = db__wire_varint(m); break;
    case 5: length = 4; break;
    default: m->bad = 1; break;
    }
    if (length > (uint64_t)(m->end - m->at)) m->bad = 1;
    if (m->bad) return 0;
    f->data = m->at;
    f->length = (size_t)length;
    m->at += length;
    for (i = f->length; f->wire != 2 && i > 0; i--) f->value = f->value << 8 | f->data[i - 1];
    return 1;
}

static db__message db__wire_message(const void *data, size_t bytes)
{
    db__message m;
    m.at = (const unsigned char *)data;
    m.end = m.at + bytes;
    m.bad = 0;
    return m;
}

/* One piece; its text goes to *texts. Returns 0 when it is not a valid message. */
static int db__read_piece(const db__field *field, db__piece *p, char **texts)
{
    db__message m = db__wire_message(field->data, field->length);
    db__field f;
    p->text = *texts;
    p->type = DB__PIECE_NORMAL;
    while (db__wire_next(&m, &f)) {
        if (f.number == 1 && f.wire == 2) {
            memcpy(*texts, f.data, f.length);
            (*texts)[f.length] = 0;
            p->length = (uint32_t)f.length;
        } else if (f.number == 2 && f.wire == 5) {
            p->score = db__bits_to_float((uint32_t)f.value);
        } else if (f.number == 3 && f.wire == 0) {
            p->type = f.value <= DB__PIECE_BYTE ? (int)f.value : 0;
        }
    }
    *texts += p->length + 1;
    return !m.bad;
}

/* The normaliser's table: 4 bytes n, n bytes of double array, then strings that end in NUL. */
static db_result db__read_charsmap(db_tokenizer *tok, const char *name, const db__field *f)
{
    size_t i;
    uint32_t trie_bytes = 0;
    if (f->length == 0) return DB_OK;
    for (i = 4; f->length > 4 && i > 0; i--) trie_bytes = trie_bytes << 8 | f->data[i - 1];
    if (trie_bytes < 4 || trie_bytes % 4 || trie_bytes >= f->length - 4 || f->data[f->length - 1])
        return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: the normaliser's table is damaged", name);
    db__free(tok->ctx, tok->charsmap);
    tok->charsmap_units = trie_bytes / 4;
    tok->charsmap_bytes = f->length - 4;
    tok->charsmap = (unsigned char *)db__alloc(tok->ctx, tok->charsmap_bytes, 1);
    if (tok->charsmap) memcpy(tok->charsmap, f->data + 4, tok->charsmap_bytes);
    return tok->ctx->result;
}

/* Trainer (2) and normaliser (3) settings; everything unknown is skipped. */
static db_result db__read_settings(db_tokenizer *tok, const char *name, const db__field *field)
{
    db__message m = db__wire_message(field->data, field->length);
    db__field f;
    while (db__wire_next(&m, &f)) {
        int trainer = field->number == 2, yes = f.value != 0;
        if (f.wire == 2 && !trainer && f.number == 2) {
            if (db__read_charsmap(tok, name, &f) != DB_OK) return tok->ctx->result;
        } else if (f.wire != 0) {
            continue;
        } else if (trainer && f.number == 3 && f.value != 1) {
            return db__fail(tok->ctx, DB_ERROR_UNSUPPORTED, "%s: only unigram models are supported,"
                            " this one is of type %" PRIu64 " (2 is BPE)", name, f.value);
        } else if (trainer) {
            if (f.number == 24) tok->space_is_suffix = yes;
            if (f.number == 35) tok->byte_fallback = yes;
        } else {
            if (f.number == 3) tok->add_dummy_prefix = yes;
            if (f.number == 4) tok->remove_extra_spaces = yes;
            if (f.number == 5) tok->escape_spaces = yes;
        }
    }
    if (!m.bad) return DB_OK;
    return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: its settings are damaged", name);
}

/* Reads all fields; pieces get their memory in a first pass that only counts them. */
static db_result db__read_spiece(db_tokenizer *tok, const char *name, const void *data,
                                 size_t bytes)
{
    db__message m = db__wire_message(data, bytes);
    db__field f;
    char *texts;
    while (db__wire_next(&m, &f)) tok->size += f.number == 1 && f.wire == 2;
    if (m.bad || tok->size == 0 || tok->size > INT32_MAX || bytes > UINT32_MAX)
        return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: not a SentencePiece model (%s)", name,
                        m.bad ? "not a protobuf message, or cut short" : "it has no pieces");
    /* A piece's text and NUL are shorter than the field that holds them. */
    tok->piece = (db__piece *)db__alloc(tok->ctx, tok->size, sizeof *tok->piece);
    tok->texts = (char *)db__alloc(tok->ctx, bytes, 1);
    if (!tok->piece || !tok->texts) return tok->ctx->result;
    m = db__wire_message(data, bytes);
    texts = tok->texts;
    tok->size = 0;
    while (db__wire_next(&m, &f)) {
        if (f.wire != 2) continue;
        if (f.number == 1 && !db__read_piece(&f, &tok->piece[tok->size++], &texts))
            return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: piece %zu is damaged", name,
                            tok->size - 1);
        if ((f.number == 2 || f.number == 3) && db__read_settings(tok, name, &f) != DB_OK)
            return tok->ctx->result;
    }
    return DB_OK;
}

/* Sorts the pieces that text can contain (`reserved` = 0), or the others; refuses equal ones. */
static db_result db__sort_pieces(db_tokenizer *tok, const char *name, int reserved)
{
    size_t i, n = 0;
    for (i = 0; i < tok->size; i++) {
        int type = tok->piece[i].type;
        int in_text = type == DB__PIECE_NORMAL || type == DB__PIECE_USER
                   || type == DB__PIECE_UNUSED;
        if (in_text != reserved) tok->sorted[n++] = &tok->piece[i];
    }
    tok->sorted_count = n;
    qsort((void *)tok->sorted, n, sizeof *tok->sorted, db__by_piece_text);
    for (i = 1; i < n; i++)
        if (db__by_piece_text(&tok->sorted[i - 1], &tok->sorted[i]) == 0)
            return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: piece \"%s\" is there twice", name,
                            tok->sorted[i]->text);
    return DB_OK;
}

/* Everything the library checks when it loads a model, and numbers that are numbers. */
static db_result db__check_spiece(db_tokenizer *tok, const char *name)
{
    db_ctx *ctx = tok->ctx;
    size_t i;
    int bytes_found = 0;
    tok->min_score = FLT_MAX;
    for (i = 0; i < tok->size; i++) {
        const db__piece *p = &tok->piece[i];
        unsigned value = 0;
        if (p->length == 0 || p->type == 0 || !(p->score - p->score == 0))
            return db__fail(ctx, DB_ERROR_FORMAT, "%s: piece %zu (\"%s\") is empty or has an"
                            " invalid type or score", name, i, p->text);
        if (p->type == DB__PIECE_NORMAL) tok->min_score = DB__MIN(tok->min_score, p->score);
        if (p->type == DB__PIECE_USER) tok->has_user_symbols = 1;
        if (p->type == DB__PIECE_UNKNOWN && tok->special[DB_SPECIAL_UNK] >= 0)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s: has two unknown pieces", name);
        if (p->type == DB__PIECE_UNKNOWN) tok->special[DB_SPECIAL_UNK] = (int32_t)i;
        if (p->type == DB__PIECE_CONTROL && strcmp(p->text, "<pad>") == 0)
            tok->special[DB_SPECIAL_PAD] = (int32_t)i;
        if (p->type == DB__PIECE_CONTROL && strcmp(p->text, "</s>") == 0)
            tok->special[DB_SPECIAL_EOS] = (int32_t)i;
        if (p->type == DB__PIECE_BYTE) { /* "<0x41>" */
            char expected[8];
            if (p->length == 6 && sscanf(p->text, "<0x%2X>", &value) == 1) value &= 0xFF;
            snprintf(expected, sizeof expected, "<0x%02X>", value);
            if (!tok->byte_fallback || strcmp(expected, p->text) != 0)
                return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" is no byte piece, or byte"
                                " fallback is off", name, p->text);
            bytes_found += tok->byte_id[value] < 0;
            tok->byte_id[value] = (int32_t)i;
        }
    }
    if (tok->special[DB_SPECIAL_UNK] < 0 || tok->special[DB_SPECIAL_EOS] < 0)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: has no %s piece", name,
                        tok->special[DB_SPECIAL_UNK] < 0 ? "unknown" : "</s> control");
    if (tok->special[DB_SPECIAL_PAD] < 0) tok->special[DB_SPECIAL_PAD] = 0;
    if (tok->byte_fallback && bytes_found != 256)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: byte fallback needs 256 byte pieces, not %d",
                        name, bytes_found);
    return DB_OK;
}

/* Checks the pieces and puts them in order. */
static db_result db__finish_spiece(db_tokenizer *tok, const char *name)
{
    if (db__check_spiece(tok, name) != DB_OK) return tok->ctx->result;
    tok->sorted = (const db__piece **)db__alloc(tok->ctx, tok->size, sizeof *tok->sorted);
    if (tok->sorted && db__sort_pieces(tok, name, 1) == DB_OK) db__sort_pieces(tok, name, 0);
    return tok->ctx->result;
}

db_result db_tokenizer_load_spiece(db_ctx *ctx, const char *name, const void *data, size_t bytes,
                                   db_tokenizer **out)
{
    db_tokenizer *tok = db__new_tokenizer(ctx, DB_TOKENIZER_T5);
    *out = NULL;
    if (!tok) return ctx->result;
    if (db__read_spiece(tok, name, data, bytes) == DB_OK) db__finish_spiece(tok, name);
    return db__finish_tokenizer(tok, out);
}

/* ---- SentencePiece: normalisation ------------------------------------------------------------ */

/* Unit `i` of the double array (Aoe, 1989, in darts-clone's layout). The file may claim anything:
   an index beyond the array reads as a unit that ends every search. */
static uint32_t db__charsmap_unit(const db_tokenizer *tok, size_t i)
{
    const unsigned char *u;
    if (i >= tok->charsmap_units) return 0x80000000u;
    u = tok->charsmap + i * 4;
    return (uint32_t)u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
}

/* What leads from a unit to its children, by xor: bits 10 and up, times 256 if bit 9 is set. */
static size_t db__unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << (unit >> 6 & 8);
}

/* The longest rule that starts the text: returns the bytes it replaces (0: none) and by what. */
static size_t db__charsmap_match(const db_tokenizer *tok, const char *text, size_t n,
                                 const char **replacement, size_t *length)
{
    size_t at, i, matched = 0, from = 0;
    if (!tok->charsmap) return 0;
    at = db__unit_offset(db__charsmap_unit(tok, 0));
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        uint32_t unit = db__charsmap_unit(tok, at ^ c);
        if ((unit & 0x800000FFu) != c) break;  /* bit 31 marks a value: no child of that byte */
        at = at ^ c ^ db__unit_offset(unit);
        if (unit >> 8 & 1) {                   /* a key ends here; its value is the next unit */
            from = db__charsmap_unit(tok, at) & 0x7FFFFFFFu;
            matched = i + 1;
        }
    }
    if (matched) { /* the value is a place among the strings; the last byte of all is a NUL */
        size_t strings = tok->charsmap_units * 4;
        if (from >= tok->charsmap_bytes - strings) return 0;
        *replacement = (const char *)tok->charsmap + strings + from;
        *length = strlen(*replacement);
    }
    return matched;
}

/* Normalises what starts the text: a user-defined symbol stays, else a rule applies, else one
   character stays, U+FFFD for a byte that is none. Returns the bytes read (> 0). */
static size_t db__normalise_prefix(const db_tokenizer *tok, const char *text, size_t n,
                                   const char **out, size_t *length)
{
    size_t read = 0, i;
    uint32_t code;
    db__range r = db__range_all(tok);
    *out = text;
    for (i = 0; tok->has_user_symbols && i < n && db__range_narrow(tok, &r, text[i]); i++) {
        const db__piece *p = db__range_piece(tok, &r);
        if (p && p->type == DB__PIECE_USER) read = i + 1;
    }
    *length = read;
    if (read) return read;
    read = db__charsmap_match(tok, text, n, out, length);
    if (read) return read;
    read = *length = db__utf8_decode(text, n, &code);
    if (read) return read;
    *out = "\xef\xbf\xbd";
    *length = 3;
    return 1;
}

/* Appends normalised text, spaces as the piece files spell them. */
static void db__append_spaced(const db_tokenizer *tok, db__text *t, const char *s, size_t n)
{
    for (; n > 0; s++, n--) {
        if (*s == ' ' && tok->escape_spaces) db__text_append(t, db__space_symbol, 3);
        else db__text_append(t, s, 1);
    }
}

static void db__normalise(const db_tokenizer *tok, const char *text, db__text *t)
{
    const char *space = tok->escape_spaces ? db__space_symbol : " ", *part;
    size_t n = strlen(text), space_bytes = strlen(space), length, read;
    int after_space = tok->remove_extra_spaces;

    while (tok->remove_extra_spaces && n > 0) { /* spaces in front */
        read = db__normalise_prefix(tok, text, n, &part, &length);
        if (length != 1 || *part != ' ') break;
        text += read;
        n -= read;
    }
    if (n == 0) return;
    if (tok->add_dummy_prefix && !tok->space_is_suffix) db__text_append(t, space, space_bytes);
    for (; n > 0; text += read, n -= read) {
        read = db__normalise_prefix(tok, text, n, &part, &length);
        for (; after_space && length > 0 && *part == ' '; part++) length--;
        db__append_spaced(tok, t, part, length);
        if (length > 0) after_space = tok->remove_extra_spaces && part[length - 1] == ' ';
    }
    while (tok->remove_extra_spaces && t->length >= space_bytes /* spaces at the end */
           && memcmp(t->data + t->length - space_bytes, space, space_bytes) == 0)
        t->length -= space_bytes;
    if (tok->add_dummy_prefix && tok->space_is_suffix) db__text_append(t, space, space_bytes);
}

/* ---- SentencePiece: the best segmentation ---------------------------------------------------- */

/* Ids in the making. */
typedef struct db__ids {
    db_ctx *ctx;
    int32_t *id;
    size_t count, capacity;
} db__ids;

static void db__ids_push(db__ids *ids, int32_t id)
{
    void *grown = ids->id;
    if (!(grown = db__grow(ids->ctx, grown, &ids->capacity, ids->count + 1, sizeof *ids->id)))
        return;
    ids->id = (int32_t *)grown;
    ids->id[ids->count++] = id;
}

/* The best way to have cut the text up to here: its score, and its last piece. */
typedef struct db__cut {
    float score;
    uint32_t start; /* of the last piece; DB__NO_CUT when nothing has reached this byte */
    int32_t id;
} db__cut;
#define DB__NO_CUT 0xFFFFFFFFu

/* Bytes of the character that starts with this one. */
static size_t db__character_bytes(char c)
{
    unsigned char u = (unsigned char)c;
    return u < 0xC0 ? 1 : u < 0xE0 ? 2 : u < 0xF0 ? 3 : 4;
}

/* Takes a way to reach this byte if it is the first or better than the best. */
static void db__offer_cut(db__cut *c, size_t start, float score, int32_t id)
{
    if (c->start != DB__NO_CUT && !(score > c->score)) return;
    c->score = score;
    c->start = (uint32_t)start;
    c->id = id;
}

/* Fills cut[1 .. n]: from each character's start, tries every piece that begins there. */
static void db__viterbi(const db_tokenizer *tok, const char *text, size_t n, db__cut *cut)
{
    const float unknown = tok->min_score - 10.0f;
    size_t start, end, step;
    for (start = 0; start < n; start += step) {
        float here = cut[start].score;
        int covered = 0; /* does a piece cover just this character? */
        db__range r = db__range_all(tok);
        step = DB__MIN(db__character_bytes(text[start]), n - start);
        for (end = start + 1; end <= n && db__range_narrow(tok, &r, text[end - 1]); end++) {
            const db__piece *p = db__range_piece(tok, &r);
            float score;
            if (!p || p->type == DB__PIECE_UNUSED) continue;
            score = p->type == DB__PIECE_USER ? (float)(0.1 * (double)(end - start - 1)) : p->score;
            db__offer_cut(&cut[end], start, score + here, (int32_t)(p - tok->piece));
            covered |= end - start == step;
        }
        if (!covered)
            db__offer_cut(&cut[start + step], start, unknown + here, tok->special[DB_SPECIAL_UNK]);
    }
}

/* Appends the ids along the best cuts, which are linked from the end of the text to its start. */
static void db__collect(const db_tokenizer *tok, const char *text, size_t n, db__cut *cut,
                        db__ids *ids)
{
    int32_t unknown = tok->special[DB_SPECIAL_UNK], previous = -1;
    size_t start, end, next = 0, i;
    for (end = n; end > 0; end = start) { /* turn the links round: now to the next piece's end */
        start = cut[end].start;
        cut[end].start = (uint32_t)next;
        next = end;
    }
    for (start = 0, end = next; end > 0; start = end, end = next) {
        int32_t id = cut[end].id;
        next = cut[end].start;
        if (id == unknown && tok->byte_fallback)
            for (i = start; i < end; i++) db__ids_push(ids, tok->byte_id[(unsigned char)text[i]]);
        else if (id != unknown || previous != unknown)
            db__ids_push(ids, id);
        previous = id;
    }
}

static void db__spiece_encode(const db_tokenizer *tok, const char *text, db__ids *ids)
{
    db__text t;
    db__cut *cut = NULL;
    size_t i;
    memset(&t, 0, sizeof t);
    t.ctx = tok->ctx;
    db__normalise(tok, text, &t);
    if (t.length >= DB__NO_CUT)
        db__fail(tok->ctx, DB_ERROR_ARGUMENT, "a text of %zu bytes is too long", t.length);
    if (tok->ctx->result == DB_OK && t.length > 0)
        cut = (db__cut *)db__alloc(tok->ctx, t.length + 1, sizeof *cut);
    if (cut) {
        for (i = 1; i <= t.length; i++) cut[i].start = DB__NO_CUT;
        db__viterbi(tok, t.data, t.length, cut);
        db__collect(tok, t.data, t.length, cut, ids);
    }
    db__free(tok->ctx, cut);
    db__text_free(&t);
}

/* ---- CLIP: Unicode ---------------------------------------------------------------------------
   What is a letter, a number, a lower-case form, a composed form: five tables of rows
   {first, last, a, b}, packed into text by tools/make_unicode.py, which explains the packing.    */

/* Generated by tools/make_unicode.py with tokenizers 0.23.3, unicodedata 14.0.0. */
/* 821 rows; a: 1 for letters, 2 for numbers */
static const char *const db__unicode_classes[] = {
    "wBJEAHZBAGZAAvBAAAHBCABABADACAAABABCCABWBABeAABpOAAELAAOEAAHAAABAAAhEEAABBAACDAABAAAGAAABCAAB",
    "AAABTAAByCAABqEAAIlFAABlBAACAAAGoBAAnCaAAEDAAtBqBAAVJCAEBBABiDAABAAAPBAAHBAAAJCAACBACAAAQAAAB",
    "dAAd4CAALAAAOJCAAgBBAJBAAEAAAFVAAEAAAJAAADAAAXYAAHKAAFXAABFAARpBAA6B1BAADAAASAAAHJAAEJCABPBAE",
    "HAACBAACVAABGAABAAADDAADAAAQAAANBAABCAAEJCAABBACFCACABAIFAAEBAACVAABGAABBAABBAABBAAfDAABAAAHJ",
    "CACCBAQIAABCAABVAABGAABBAABEAADAAASAAAPBAAEJCAJABALHAACBAACVAABGAABBAABEAADAAAeBAABCAAEJCABAB",
    "AAFCALABABFAADCAABDAADBAABAAABBAADBAADCAADLAAWAAAVMCASHBABCAABWAABPAADAAAaCAACAAACBAAEJCAIGAA",
    "BABAEHAABCAABWAABJAABEAADAAAfBAABBAAEJCABBBARIAABCAABoBAACAAAQAAAFCAABGCAACBAESCABFBAFRAADXAA",
    "BIAABAAACGAAfJCARvBBABBAAMGAAJJCAnBBBABAAABEAABXAABAAABJAABBAAJAAACEAABAAAJJCACDBAgBAAAfTCAMH",
    "BABjBAAbEAAzDqBAAUAAAAJCAGFBAEDAADAAADBAAHCAAEMAAMAAABJCAGlBBABAAAFAAACqBAABsKAABDAACGAABAAAB",
    "DAACoBAABDAACgBAABDAACGAABAAABDAACOAAB4BAABDAACiCAAOTCADPBAQ1CAACFAADrTAACQAABZAAFqCAADCCAAHB",
    "AHRAANSAAORAAOMAABCAAPzBAAjBAAAEAAADJCAGJAAWJAAG4CBAHEAAChBAABAAAFlCAAKeAAnBJCAAdBACEAALrBAAE",
    "ZAAGKCAlBWBAJ0BAArBJCAGJAANABA9CuBAARHAADJCApBdBANBAAAJCAArBBAajBAAcJCADCBAAJCAAjBBACKAAFqBAA",
    "CCAApBDAABFAABBAADAAAF-FAAgC1IAACFAAClBAACFAACHAABAAABAAABAAABeAAC0BAABGAABAAADCAABGAADDAACFA",
    "AEMAAFCAABGAAzDACAAABACFCAFABAAJCAGMBAlDAAAEAAACJAABAAADEAAGAAABAAABAAABDAABKAACDAAFEAAEAAABy",
    "BCAABBAAECA2W7BAAuCVAA2TdAAsjBkHBAGDAADBAAJACAClBBABAAAFAAAC3BAAHAAAQWAAJGAABGAABGAABGAABGAAB",
    "GAABGAABGAAwCAAA1OBAAAACAZIAAHEBACCCAABBAE1CAAGCAAB5CAABDAAFqBAAB9CAADDCAKfBAwBPAAgBJCAeHAABO",
    "AAgBJAAnBOAAgK-tGBAgCs0VAAjCtBAACsIAADPAAAJCAABBAUuBAAQeAAClCAAAJCAnBIBACmDAACiCAACBAABAAABHA",
    "AVPAABCAABDAABWAANFCAKzBBAOxBAAcJCAYFBADAAABBAABJCAAbBAKWAAZcAAHuBAAcAAAAJCAGEBABJAAAJCAAEBAB",
    "oBAAXCAABHAAEJCAGWBADAAADxBAABAAADBAACEAACAAABAAAYCAACKAAHCAAMFAACFAACFAAJGAABGAABqBAABNAAGyD",
    "AANJCAGj9KBAMWAAEwBAAkoItLAACpDAAmBGAAMEAAFAAABJAABMAABEAABAAABBAABBAABrDAAhBqLAAS-BAAC1BAAoB",
    "LAA0DEAABmEAATJCAHZBAGZAAL4CAADFAACFAACFAACCAAjBLAABZAABSAABBAABOAACNAAiB6DAAMsBCAM4BAARBAA0H",
    "cBADwBAAQaCAEfBAADCAJTBAAACAAHBAAACAFlBBAKdAACjBAAEHAABECAqB9EBACJCAGjBBAEjBAAEnBAAIzBAAMKAAB",
    "OAABGAABBAABKAABOAABGAABBAADzBAAM2JAAJVAAKHAAYFAABpBAABIAAlCFAACAAABrBAABBAADAAACWAACHCAAWBAC",
    "GCAAeBAIICAwBSBABBAAFECAAVBAAFCAEZBAmC3BAAEBCAABBAAPCACtBAAAABAPDAABCAABcAAKICAXcBAABCABcBAAC",
    "CAgBHBABbAAGECAQ1BBAKVAACHCAASBAFHCAARBAXGCAwCoCBA3ByBAANyBAAHFCAAjBBAMJCAGJAAAbBAJWAA6GeCABp",
    "BBAGBAAQCAA7BcAAAJCAAABAIVAALDCAbRBAuBUAAAGCAUWBAM0BAAadCABBBACAAANsBAAgBYAAHJCAJjBBAPJCAEABA",
    "CAAAIiBAADAAAMvBAAODAALJCAAABABAAAETCALRBABYAATBAA-BGAABAAABDAABOAABJAAHuBAARJCALHBACBAACVAAB",
    "GAABBAABEAADAAASAAAMEAAeJAABAAACAAABlBAABAAAZAAABAAAsB0BAASDAAFJCAFCBAevBAAUBAABAAAIJCAmFuBBA",
    "pBDAAkBvBAAUAAALJCAmBqBBANAAAHJCAGTAAcaBAVLCAEGBA5FrBAA0D-BAAASCAMHBACAAACHAABBAABXAAPAAABAAA",
    "OJCAmCHBACmBAAQAAABAAAcAAAKnBAAHAAAVAAALtBAATAAASoCAAnGgBAAPJCAGIBABkBAARAAAPcCAFdBAwDGAABBAA",
    "BlBAAVAAAJJCAGFBABBAABfAAOAAAHJCA2JSBAPAAABMAABhBAAcJCA2CABAPUCArB5cBAmDuDCARjGBAsyCgDAAPvhBA",
    "ARFAAZ68DAAFmSAA51GdAASJCAm2B4RBAHeAABJCAGuCBABJCAGdBASvBAAQDAAMJCABGAABUBAFSAAwNsBAADJCAmG-B",
    "BAAWCApDqCBAFAAAiCMAAgCBAABAAAc3-FAAI1mBAApBJAAn3IDAABGAABBAABiJAAPAAAdCAACAAAODAAIrMAAkoCqDA",
    "AFMAADIAAHJAA2iEJCAmuBTAAMTAAsDYAAnE0CBABmCAABBAACAAACBAACDAABLAABAAABGAABgCAABDAACHAABGAABbA",
    "ABDAABEAABAAADGAABzKAACYAABYAABeAABYAABeAABYAABeAABYAABeAABYAABHAACxBCAg4BeBAGFAAlI9BAAyEsBAA",
    "KGAACJCAEABAhKdAASrBAAEJCA2ObBAEJCA2GdBACAAAAJCAlPGBABDAABBAABOAABkGAACICAwBjCBAHAAAEJCA3Y6BA",
    "ABCAABDAAsCsBAABOAAiGDBABaAABBAABAAACAAABJAABDAABAAABAAAGAAAEAAABAAABAAABCAABBAABAAACAAABAAAB",
    "AAABAAABAAABBAABAAACDAABGAABDAABDAABAAABJAABQAAFCAABEAABQAAkSMCAj3CJAAmgB-2pBBAgB5hEAAG9GAACh",
    "0FAAOwpHAAPtTAAitC9QAAivBq6EAAF-iEAA",
    NULL};
/* 185 rows; a: what to add; b: to each code point, or each second one */
static const char *const db__unicode_lower[] = {
    "hCZgCClDWAABGAAhBuB9BCDEAACOAACsBAABAzHBAE0HCDAiNBAChNCBA6MBAA5MABB4MAAA3MACA8EAAA2HAAACAAAzM",
    "ABA4MAAAEABAIAAADAAA-MADAkNAAAEABACAAEpNCBAyNBAAxNABAyNACAxNABAyNAAAxNABBwNAACvNCBA0NBAAzNADA",
    "AAHACAAABABACAAABABACAAQBCCQAACACBACBCBAjGBAAyCAAmByDCBAlIBBQmICHA0iVBAAziVABAnKAAA2sVACAtiVA",
    "BAnMAAAwQAAAEAAIrEChJCAADAABIAmHAGA7EABCBABA2BABBBABQ9BABIAAjBAvBAIWNCFA5DBCA6DABAPAAAQACClIA",
    "APkNAAf-CAwBgB9BCJ0BAABAcBAMbCC+CAAClB+CBp6ClBgjOABAAAFAAAyWvCg39BAAFv8rCAzkCANAGqBh8FACCAAgK",
    "0Ei8FCJA-7OBB+Cg8OCJHRBIFAAKHAAIHAAIFAALGACIHABYHAAIHAAIHAAIBAAABjEAAAiEALD5EAAA6EALBCAAB3FAM",
    "B4FAABvGAAAyGALBxHAABEAAAqHApJAn1OADAj2BAAAyHAGAkmQAtBPXATAdAyZZyBAw5BvBsBAwBA9CABAv-UAAAixNA",
    "AAhwNACEw+UCBA5hVBAA+BAAAjCAAACABA+hVACAAAIB-jVAAiDgkVCICAAEAABtqesBACTaAAnEMAAD8BAAKCAABApgl",
    "CBAIqglCCEAABBAxyyCACCyyyCCDSAABAp0yCBAAVAAAIAAAUAAAFABAkDAAAvBAAAqBAAAqr0CAAO95BCBAhDBAAlxyC",
    "AAA2wNAACyjlCCBAv2yCBAOw2yCCBAjkzCBYAkkzCAr5VZ+BAlmBnBQAoEjBAA8EKBABOAABGAABBAAq3ByByBA9EV-BA",
    "65CfAAgsVfAAgCYJAnyehBOA",
    NULL};
/* 333 rows; a: the canonical combining class */
static const char *const db__unicode_combining[] = {
    "gYUsOAAAEAADXAAAYAAAfAAEIAABjBAADkBAABjBAAKkBAAE1NAAD2NAAHUAAAUAAATAACTAACUAABTABCUAADTAAAUAA",
    "AEAABXAAAUAAAGAABCAAABAABCAAABAAMFAzIEAApIATAADUAAATAACUAAAPAAADAAFUAAFTAABUAAATAABUAAAPAAAMA",
    "AAEAAA3NAAACAAACAAACAAACAAACAAACAAACAAACAABCAAACAAACAAACABACABACAAACABA6MAAATABAzMAoCHoNAAAvM",
    "AAACAAACAwBAJAAACAAACAAACAAACAAACAAACAAACAABoMAABTAAEUAAATAABUAAATAQAxLAlDGmMACDAAAATAAAUACBA",
    "ABATAABUAAATAjBAvLAeAkMAAATAABUAAATAABUAACTAAAUAABTAAAUAAATAACUAAATAAAUAAATAAAUAAATAAAUAAATAA",
    "BUAgFGAAAATAAAUAiBDAABIAABCAABEAArBCTA4DNUABATAABUAAATAABUAAATAACUAACTAAAhMAAACAAACAACyMAAATA",
    "ABUAABTAAEUA8BA9NAQAEADA6NAAATAABUAnDA9NAQAEAuDADAQAEAuDADAQAEAuDADAQAEA-DAAA-DAAAHA2EAAAOAlD",
    "AnFAQAEA-DAAA8DAAAtDB8FAAA7FANDkGAsDBWAODIAsCBkGAbAAABAAABAHA3BAtFAAACABAEAFDDACAAABBoGAAA5NA",
    "BB6NA+BATAwDApNABBEAyCAmNAvWCUA0dA5NAfAAA9EAAAKA6NArGADAvEALAAAQAAATA7GAUAAATAnCAlNAUH6NACATA",
    "wBEUAAFTAABUAAATA2DApNAPAEAmBA6NAAATAAGUA2BB5NA6BADALBEAjCADA4EC+NABApOAAE2NAABUAADTAAAUABGpO",
    "AEA2NAGAUADBAAmGBAAAATAAGUAAATAABUAAAIAAAnBAAAMAAAjBAAkB4BAFAAAAAGAAAZAAAUAAATAwWBUAABpOAADqO",
    "AACpOAABqOAEAAADBpOAAAqOAAATAAAUAABpOAAD2NAAAUA+-CCAAtEA5NAgDf6NAqRAXAAAUAAAIAAATAABEApDBvNA0",
    "udA8NAEJAAgBBAAwCBAA0IA5NA9FAAAbR6NA5BCTAlBAlNA-CADAMAEAvHA6NABBAAAATACBUAFBAABAAA0BA5NA2HAAA",
    "w5TAiBAhYG4MAAGTAABUAteATAiHAAA1EEUAy0BATABAUAoBAAAAApOAAA2NAEAlNAlFA6NAAATA-qBAlNA4BAAA5BAAA",
    "AADAlCC+NAwBB5NA+BADAsCAEAJADAqDAEAAADAyFAAAAAEAxCADAQAEAYG6NADEAAtGA5NADADA7DAEAAADA7HAEAAAD",
    "A+DAEA2DAAAAADAzDAEAzoBAAAw1TEPA7BGqOAnrUApOAmmFBuNAACtNADAiOAAETAIHIACEUAABTAeDUA0ECAA7tDGAA",
    "BQAACGAABBAABEAAllCGTAtDFUAAA9NA",
    NULL};
/* 941 rows; first is a with b behind it, both ways */
static const char *const db__unicode_pairs[] = {
    "gGAiEgwBAAACAAACAAACAAAKAAAEBAE6BAAEtCAAACAAACAAAMAAIPAAACAAACAAAMBAKJAACFAAACAAACAAACAAAKCAM",
    "PAAACAAACAAAMAAINCAQBAAACAAACAAACAAAKAAAEBAE6BAAEtCAAACAAACAAAMAAIPAAACAAACAAAMBAKJAACFAAACAA",
    "ACAAACAAAKCAMPAAACAAACAAAMAAINBAAOAAvDHAAgCAAA-BEAAgCAAA-BkCAAgCAAA7BtCAAgCAAA-BCAAgCAAA-BKAA",
    "gCAAA-BKAAgCAAA9BAAAgCACA9BPAAgCAAA-BEAAgCAAA-BCAAgCAAA-BiCAAgCAAA-B3BAAgCAAA7BTAAgCAAA-BIAAg",
    "CAAA-BCAAgCAAA-BgCAAgCAAA9BpCAAgCACA9BCAAgCAAA-BCAAgCAAA-BEAAgCAAA-BkCAAgCAAA-BhCDACJAAgCAAA9",
    "BqCAAgCABA9BrCAAgCAAA-BsCAAgCAAA-B1BAAgCAEA7BVAAgCAAA-BsCAAgCAAA-B1BAAgCADA9BPAAgCAAA-BEAAgCA",
    "AA-BKAAgCACA5BTAAgCAAA-BsCAAgCAAA-B1BAAgCAAA9BVAAgCAAA-BCAAgCAAA-BqCAAgCAAA-B1BAAgCAAA9B2BAAg",
    "CAAA-B1BAAgCACA9BRAAgCAAA-BCAAgCAAA-BEAAgCAAA-BIAAgCAAA-BCAAgCAAA-B6BAAgCAAA7BrCAAgCAAA7BAAAg",
    "CAAA-BMAACNAAgCAAA-BMAAgCAAA-BKAAgCAhBA1CeAAgCANAzBAAAgCAcAnDdAAgCAAAvBAAAgCAAAzBAAAgCAAAzBAA",
    "AgCAAAuGPAAgCAAA-BFAAgCAAA-BWAAgCAAA-BXAAgCABAvDIAAgCAAAkUAAACAAAhWAAAgCACA9JQAAgCAAA3BAAAgCA",
    "AA3B4BAAgCAAA2XnCAACAAAnDQAA2NAAAviBADAlCVAAgCACAxBBAAgCAAAuFCAAgCAAA9BAAAgCAAAbAAAgCAAAtLcAA",
    "gCAAA-BEAAgCAAA3BDAAgCAAA-BEAAgCAAA3BDAAgCAAA-BEAAgCAAAzBDAAgCAAA-BEAAgCAAA5BDAAgCAAA-BEAAgCA",
    "AA5BDAAgCAAA-BEAAgCAAAjCqBAAgCAAA9BAAAgCACA3CzBAAgCAGAtCJAAgCAAA3BgCAAgCAAAiHlCAAgCAAAhCAAAgC",
    "AAArKGAAgCAAA+bFAACAAArdAAAgCAxKA+CFAAyuBABAIAAAEAAAEABAMABAMAAAIAAAiCAZAhDOAAYAAAYNAAIAAAEAA",
    "AEAAAkBAZAjBOAAYAAALNAAMAAAIAEASAAAAOrBAmEPAAAQBADNDAZOEAoBNAADBAAWMKAVAfAgCAWAFLAAAQBADNDAmC",
    "OEA3BNAADBAAWMXAiDSAACApCA9FRAAgCANArCAAAgCAAA-BEAAgCACA1BDAAgCACAmKEAACAAAlMAAAgCAAA9BAAAgCA",
    "CA9BHAAgCAAA-BIAAgCAAAzBAAAgCACA0KAAACAAA3LAAAgCAAAzCHAAgCAAA-BIAAgCAAA-BGAAgCAAA3BFAAgCACA3B",
    "AAAgCAoJA4d20BAAACAAiCAAAhCCAAmCB5EA2IABAnBAQAiBA1SAslBwuBHAQACAGA2EAoJkIAAAyB7LAgY+XCAAvBAAA",
    "yBnCA2EgI1BAoDxBAACAAAByB7DAgI+H3DAyH+HGAOAAAACBAAnBAAImB+DA4HyGAACAAAByBtEAmJmHBAAKAAGJAAFqB",
    "nSA4kB+kB-2CAguFuwFBAEABAEABAEABAEADAIAoBAyCABAEACAEAAACABAGA8VAhwN-gMAAgCAAA9B7BAAgCAAA-B4BA",
    "AgCAAA-BcAAgCAAAqG-CAAgCAAAlKMAAgCAAA-B4BAAgCAAA-BcAAgCAAA-BTAAgCAAA-BMAAgCAAA8K5CAACAAABCAAC",
    "AAA7M4CAAgCAAA-BGAAgCAAAmczCAACAAAleCAAgCAAA9BFAAgCAAA9BGAAgCAAA-B4BAAgCAAA-B1BAAgCAAA-B+BAAg",
    "CAAA-BOAAgCAAA9BEAAgCAAAsG9CAAgCAAAnKAAAgCAAA-BkCAAgCAAA-BcAAgCAAA9BbAAgCAAA08O9BAACAAA1+O6CA",
    "AgCAAA-BHAAgCAAA9B3CAAgCAAA-BMAAgCAAA-B4BAAgCAAA9B3BAAgCAAA-B4BAAgCAAA-BcAAgCAAA-BHAAgCAAAuG3",
    "CAAgCAAA-BOAAgCAAAuFPAACAAABCAACAAA5PAAAgCAAA-BMAAgCAAA7BAAAgCAAA-B4BAAgCAAAw+O9BAACAAAxgP6CA",
    "AgCAAA9BzCAAgCAAA-B4BAAgCAAAuO3BAACAAAKAAACAAAiwOAAACAAA9gPAAAgCAAA-B4BAAgCAAA-BcAAgCAAA-BHAA",
    "gCAAA9BRAAgCAAA-BYAAgCAAA-BFAAgCAAAmP3CAACAAACOAACAAApRJAAgCAAA-BgCAAgCAAA9BlCAAgCAAA-BCAAgCA",
    "AA-BOAAgCAAA-BBAAgCAAA-B4BAAgCAAA9B3BAAgCAAA-BCAAgCAAA9BBAAgCAAA9BJAAgCAAA-BiCAAgCAAA-BcAAgCA",
    "AAjBAAAYxCAAGEAAEABAsQFEA7T4BAAgCAAA-BzBAAgCAAAiGPAAgCAAA-BBAAgCAAA-BSAAgCAAA-BLAAgCAAA87OBAA",
    "CAAA95OBAACAAABBAACAAABSAACAAABLAACAAA65OGAACAAA3lP6BAAgCAAA-BzBAAgCAAA-BLAAgCAAAqGDAAgCAAA-B",
    "BAAgCAAA-BSAAgCAAA-BLAAgCAAA88OBAACAAA-mPOAAgCAAA-B0BAAgCAAAzBAAAgCAAA-BzBAAgCAAAqGPAAgCAAA-B",
    "BAAgCAAA-BSAAgCAAA-BLAAgCAAAw9OBAACAAA5yOBAACAAABBAACAAABSAACAAABLAACAAABgCAACAAA3UAAAgCAAA-B",
    "zBAAgCAAA0TPAACAAABBAACAAABSAACAAABLAACAAABgCAACAAAtVlCAAgCAAA-BmCAAgCAAA-BzBAAgCAAA-BLAAgCAG",
    "AwzBgBAAACAA+0NnBAACAAABCAACAAABiEAACAAA-2N9CAAACAAu3NnBAACAAABCAACAAABiEAACAAAn1N9CAAACAA21N",
    "nBAACAAABCAACACA33NkBAAACAAm4NnBAACAAABCAACACAj2NkBAAACAAy2NnBAACAAABCAACAAABiEAACAAAz4N9CAAA",
    "CAAi5NnBAACAAABCAACAAABiEAACAAA-2N9CAAACAAu3NnBAACAAABCAACAAABiEAACAAAv5N9CAAACAA+5NnBAACAAAB",
    "CAACAAABiEAACAAAz3N9CAAACAAi4NnBAACAAABCAACACAj6NkBAAACAAy6NnBAACAAABCAACACAn4NkBAAACAA24NnBA",
    "ACAAABCAACAAABiEAACABA36N7CBAo7NnBBAACBAAiEAA-4N9CAAACAAu5NnBAACAAABCAACAAABiEAACAAAv7N9CAAAC",
    "AA+7NnBAACAAABCAACAAABiEAACAAAv7NjEBAIABAEABAEABAMABAMABAIADAuzNqEAACAAACAAACAAACAAACAAACAAAC",
    "AAACAAACAAACAAACAAACAAACAAACAAACAAAiBAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAAC",
    "AAACAAAiDAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAACAAA77N9DAAADAA+7NiEAA97N",
    "AAAJABAKFAAqgOGAApiO9DAAADAAAHBAAqEEAxuBFAA4sPGAA57NAAARABASFAA+gOGAAhjOpEBAEABAAqEAAwiOpEAAA",
    "CAAAiEAArgO3DAAADAAiBHDAhBkEAAiBAAAhD3DAAADAAAHCAqmOAAAACAAAiEAAxjO3DAAADAAMHBATmBAAACAAI8CAA",
    "MAAArC3DAAADAAAHBAHoBAAxvBnBEAotPqEAAl7NAAAKABAJFAA6iOGAAtlOpEBAUABAAqE9MAu+OZAAEASAEAeA4DAAA",
    "IAAADA0BAiDAEAKACAGAXAwBABAEAaAuBACAOACAEABAGAWA1gRABAoiRAKAnBAAAhhRAAAEAAAsiRAAACACAaAAACACA",
    "GAAACAGAGAAACACAOAAACACAGAAACAiBA2BAAAMAAACAAAEAwBA9CAAACAAAoBAAACAGAgCAAACAAACAAACA+qDAs5Gi2",
    "WBAEABAEABAEABAEABAEABAEABAEABAEABAEABAEABAEACAGABAEABAEAGAOAAAACBAGBAAACBAGBAAACBAGBAAACBAGB",
    "AAACWApDBJAuFANAcABAEABAEABAEABAEABAEABAEABAEABAEABAEABAEABAEACAGABAEABAEAGAOAAAACBAGBAAACBAG",
    "BAAACBAGBAAACBAGBAAACWApDBCAyEAAACAAACAAACADAWA783BA45vDiiwDBAEAOAUAiEA4I6GAACA7QAqhBuhBAAAyB",
    "uLAkXmWAAATBAAa7HA+PkPAACA8bA43Bi4B",
    NULL};
/* 1120 rows; first becomes a, or a with b behind it, and never back */
static const char *const db__unicode_singles[] = {
    "gaAgwBAAACABAkBAAAViwBvBA9EhwBJA7nBAIA4HAwuBA8lE4zEAACAAACAAAKAAAKAAACAAASAAAIA8DAkHgIAACABAa",
    "AzCAmIgICAMAiBAjCAAACAAAKACAeA9HAsPgQAACAlfAgiC2nCJAUAEAKAEAKAEAKAMA1BDJAiDlEBAAEAAiEYBACAIAj",
    "EARAiCuDJAUAEAKAEAKAEAKAMA1BD39DAn+Fp7HBACABACABACABA6BABACABACA9BAvEACAmDAKAhDABACAHAOAHALAH",
    "AsCAHAjCACARAAApyBAJA4yBABAGABA1tBACA80PAAACAkJAzlOADA71BAAA0HA9PAm0XAAACAx9BA3yCwzBjxzBA22wB",
    "vzBAAn1SAAAs9TAAAjgBAAAt-OAAA9pQAAAm7CAAAu7lBAAAAAAA1kjBAAAgocAAAzkeAAAi8BAAA8qEAAAmnKAAA4xEA",
    "AA0rDAAA2XAAA8TAAAu5DAAA5oTAAAyxBAAA87BAAAqwBAAA+lIAAA6yGAAAuoEAAA92lBAAAmvCAAA+4LAAAuxDAAAkh",
    "KAAAi-LAAA7sgBAAA2pJAAAk+KAAAu5BAAA1pTAAA+wPAAAukDAAAp1UAAA6kEAAAmlDAAAk5CAAAk9OAAAv0gBAAAijB",
    "AAAuSAAAs+IAAA+gDAAA6zDAAAutCAAA0xEAAAqgDAAAsFAAAm5DAAAm0EAAA6jCAAA2oBAAA72SAAAmPAAAiiCAAAyiD",
    "AAA2zHAAA23FAAAx6JAAAt-YAAAqiDAAA41OAAA8hCAAA3hHAAAwmDAAAw-JAAAqjFAAA9hfAAA04BAAAi7GAAAu8BAAA",
    "qTAAAgiHAAAwQAAAohMAAAx3hBAAAy7WAAA9qXAAAfAAAglUAAAk6BAAAmjDAAAooJAAApvFAAAhrUAAAmzDAAA4vQAAA",
    "pseAAA86GAAA2iCAAAq3JAAAyeAAAxlRAAAo+SAAA3zUAAA0+HAAA35IAAA+rPAAAn1DAAA06LAAA91UAAA2pCAAAmqPA",
    "AAw0GAAAimDAAA-uPAAAs-RAAAvyRAAAz4EAAAu+PAAAp0PAAAq8IAAAtrTAAA2rBAAAgGAAAwrLAAAsmKAAAw4CAAAmm",
    "EAAA6vDAAAztfAAA6UAAAizCAAAy3CAAAytDAAAyjFAAA4yEAAAmoOAAA6rCAAA6iCAAAuDAAAljmBAAA2iKAAAirCAAA",
    "2+RAAA7uYAAA4xBAAAgHAAA0pBAAAyoFAAAsiBAAAg0BAAAi0CAAA0iCAAA2nBAAAurHAAAvjFAAAqzFAAAuyBAAAlzgB",
    "AAA4IAAA0hBAAA2gOAAA0-LAAAweAAAh+VAAA4SAAAs4BAAAmjEAAAgpIAAAxsEAAAhpSAAAqhEAAA8uCAAAmdAAAkmBA",
    "AAs5JAAAuLAAAizFAAA4KAAA8+IAAAksCAAAkFAAAgNAAA5okBAAAmiVAAAsgMAAAowCAAAt9aAAA1lJAAAolBAAAoxFA",
    "AAiFAAA01EAAAymCAAA48DAAAonCAAA0rHAAAg4FAAAixHAAApwcAAAs6XAAAp6hBAAAkvKAAAwHAAA80CAAA2VAAA62C",
    "AAAgVAAAkxBAAAqqCAAA80NAAAhvjBAAAisIAAA0kaAAA5kjBAAA8uGAAAitIAAAg0QAAA95XAAAybAAAmtDAAAg3FAAA",
    "+vRAAA5liBAAAseAAAslEAAA86EAAA2TAAA0VAAA6jCAAAiyDAAA4dAAAu5EAAAs1EAAAkBAAA2uEAAAsxCAAAl6hBAAA",
    "23NAAA5pNAAAm7OAAAwsBAAAk2IAAAyqIAAAo7CAAAwkBAAAvwbAAAojDAAA6hKAAA5xDAAAqFAAAkXAAAj9EAAAtiBAA",
    "A+rNAAAvpeAAAsnaAAA3vYAAAlDAAA+pGAAA6iCAAAmgNAAAh1QAAAy5IAAAzmDAAAuoUAAA9uDAAAigHAAAjsGAAAvrV",
    "AAAl5GAAAgoCACA0pBABA0hHACArpKAAA40QAAAg6BAAAknBAAAkCAAAOAAA0CAAAu8OAAAvpNAAA+vBABAqlDABAsuCA",
    "CAg0CAAAqMADAk-DAAAaAAA4CAAA4oCAAArtGAAAy9CAAAxwjBAAAyTAAAsGAAA4XAAA2BAAA6GAAA4kBAAAyGAAAkGAA",
    "AwdAAAwGAAA47BAAAUAAAsiCAAAoNAAAsCAAAoGAAA61BAAAmJAAA+KAAAofAAAkvCAAAmKAAAwQAAA4kBAAA6LAAAufA",
    "AA+mCAAA6KAAAWAAABAAAQAAAMAAAOAAAgDAAACAAAkLAAAiEAAA+TAAAojBAAAqBAAAwDAAAiTAAAmJAAAweAAA4IAAA",
    "AAAA8dAAAyrCAAAsIAAA2WAAAwDAAA0ZAAAqDAAA8qBAAAkIAAA2qDAAA4RAAA4DAAAr8bAAAynxHAAArtgHACAj-ZAAA",
    "+4BAAA5EAAAveAAAqcAAA2DAAAuUAAAmDAAAmqBAAAvEAAAoEAAAyEAAAwnBAAAyFAAAiJAAAgBAAA8QAAAsMAAA06BAA",
    "AOAAAgJAAAoEAAA2SAAAsHAAArEAAAsIAAA7CAAAkJAAAkEAAAgZAAAwFAAAsDAAAoQAAA8RAAAmKAAAIAAA2DAAAmiCA",
    "AAiEAAAuYAAA0ZAAAfAAAuFAAA4PAAAgVAAAyjDAAAj3CAAA0HAAA2HAAAuUAAAqJAAAqDAAAkOAAAEAAA2KAAAiBAAAy",
    "BAAAsFAAATAAA4YAAAqeAAA+QAAA2LAAAgOAAAyJAAA0UAAAuMAAA60BAAA6JAAA04BAAAwcAAAqEAAAgBAAAySAAAyDA",
    "AA5CAAAsDAAAFAAAhBAAA4EAAAiFAAA8XAAAgjBAAA0TAAAuSAAA6NAAAsgCAAAuGAAAmHAAAqIAAAoCAAAYAAAgDAAAu",
    "tBAAA0oCAAA8qkGAAALAAAi5FAAAvj8HAAA2nCAAAiCAAAghpIAAAuoFAAAmgRAAA-4vHAAA2EAjCAp7sCo7CBAyBGKAR",
    "UAAACAAg26DBAAACAAx36DVAAACAAAIAACAAACAAACAAACAAACAAACABAEAAACAAACAAACAAACABAEABAEAAACABAEAAA",
    "CABAEAAACAAACAAACAAACAAApBFAAHMAAUAAASAvw1BAm3lHs6lHAACAAAOSAAACAAACAAACAAAC2CA0FZAACAAACSAAC",
    "AAABCAACA-xpCA93hG92oHAAJAAASAAAiu5GAAAj84GAAA8EAAAaAAAuEAAAwHAAA+BAAA8EAAAvBAAAhjOAAA45oHAAA",
    "5u6GAAAOAAAgBAAAmBAAAq65GAAAlmoHAAA8qOAAAsCAAA875GAAAn75GAAAaAAAvtBAAAguBAAASAAA0igJAAAz+-IAA",
    "AcAAAnyOAAA41OAAAWAAA4CAAAKAAAj2OAAAk7OAAAEAAA2BAAAsBAAAWAAACAAAiBAAAkDAAAQAAASAAAyBAAAUAAAEA",
    "AAAAAAAAAA6q7GAAA37sGAAArqOAAAqBAAAo47GAAAv37GAAAMAAAqBAAAwJAAArGAAAgBAAAgCAAA0DAAAoFAAA0BAAA",
    "mEAAAgBAAAiCAAAAAAAqBAAAkBAAAQAAAeAAAoVAAA-QAAAiRAAArMAAAmCAAA5mCAAAuuDAAA-RAAAsCAAAyBAAAjIAA",
    "AuKAAABAAA2HAAAwj+GAAAj-9GAAAKAAAeAAAoBAAAQAAAgEAAAs0+GAAAkEAAA7v+GAAA+CAAAYAAA9EAAA8IAAAv3RA",
    "AAcAAA4gSAAAsDAAAAAAA0o-GAAApg-GAAAqBAAAeAAAYAAAqy-GAAAxx-GAAAOAAA60BAAAhzBAAAhqSAAA+tSAAAcAA",
    "AkFAAAlDAAAu1gHAAAhqgHAAAmqgHAAAvngHAAAFAAAiBAAAqGAAACAAAl7SAAA88SAAA2CAAAqBAAA4CAAAtgTAAAiy0",
    "HAAAtw0HAAAojTAAAGAAAGAAAoBAAAwsiJAAAnpiJAAAmjiHAAAAAAA-ywGAAA9tRAAAAAAA1lTAAAi-8HAAAkyXAAAvn",
    "hIAAASAAAvoTAAAurTAAAmDAAAUAAAkCAAAwIAAAt0TAAA7BAAAw3TAAAgkjHAAA5gjHAAAiIAAAIAAAEAAADAAA8CAAA",
    "oBAAAoCAAAbAAAWAAA+CAAAoBAAAIAAA0BAAAWAAAkEAAAoFAAAmCAAA4HAAA47jHAAA98jHAAAhEAAA4GAAA2BAAAiGA",
    "AA6gkHAAA98jHAAA5FAAA3BAAA13UAAA2jVAAAqBAAA+BAAArCAAA1gVAAAmuVAAA6BAAA8plHAAAtilHAAAqRAAA9KAA",
    "A-yVAAAw3VAAAx4VAAAnCAAA8qLAAAGAAA22KAAAnGAAAihNAAAnteAAA8zRAAAIAAAMAAA6DAAAVAAAgnmHAAAzn8HAA",
    "AirWAAApHAAA6MAAAmDAAAw+lHAAA99lHAAA9GAAAqPAAAt3WAAAq6WAAAiGAAAuEAAA8LAAA2-lHAAAv8lHAAAlsXAAA",
    "ywXAAAs4mHAAAl1mHAAArwXAAAoyXAAA6CAAA2BAAACAAAktnHAAAj4OAAA++OAAA3qnHAAA8moHAAA5-nHAAAcAAArGA",
    "AA+KAAAwCAAAyDAAArDAAAwCAAAeAAAaAAAy5nHAAAz+nHAAA2PAAA+DAAA1zYAAAw5YAAAHAAA0goHAAAvtoHAAAqXAA",
    "Ag-nHAAAgDAAAv8nHAAAmHAAA1BAAAFAAApoZAAAorZAAAmDAAALAAAsDAAAwnqGAAA-9pGAAA8xoHAAAtsoHAAA+gpHA",
    "AAl4oHAAAaAAA2BAAAw7pHAAAv4pHAAAqBAAAgqqHAAA+NAAAzpqHAAAiBAAA9taAAAyvaAAA5uaAAAAAAA+4aAAAqBAA",
    "AqBAAAoBAAAqEAAA96aAAAygbAAAkxrHAAAvvrHAAAo1rHAAAjyrHAAA+i2GAAA941GAAAi5sHAAAuBAAA4IAAAvkoIAA",
    "AYAAA4ubAAA+-sHAAABAAAuCAAA0BAAAphtHAAACAAAAAAA2CAAAhxbAAAk1bAAAp0bAAAgFAAAu4pIAAA98tHAAA8DAA",
    "AgEAAAx+bAAAm0qIAAA-suHAAAo0uHAAA2CAAArzuHAAA4FAAA3rcAAAixcAAAUAAAKAAA6yvHAAA2SAAAAAAAx7vHAAA",
    "3ucAAAy6sIAAAp+vHAAAGAAAj6cAAAyltIAAA76vHAAAjjdAAAwkdAAAJAAA6BAAAsoxHAAAlixHAAAjmdAAAssdAAA2D",
    "AAAmEAAAhxdAAAovvIAAA+BAAA7uvIAAAg4vIAAA91xHAAAo8xHAAAx6xHAAAqGAAAWAAAqtyHAAAyEAAAlsyHAAAw0yH",
    "AAAvzyHAAA+u5GAAAz43HAAA6teAAAiFAAAvveAAAmzeAAAxoTAAAkvmIAAAcAAAjiaAAASAAA154GAAAGAAA05GAAAlz",
    "lBAAAsifAAALAAAkBAAAz+XAAA8-XAAAEAAAUAAAyCAAAsl0HAAAtl0HAAAwDAAAsEAAA0EAAAzIAAA0JAAA0CAAAgHAA",
    "AnQAAAuHAAAEAAAgBAAA0l0HAAAqTAAArJAAAz6zIAAAs8fAAAEAAAmCAAAor3HAAArm3HAAAw80HAAA980IAAAIAAAgl",
    "1IAAAiSAAAt21IAAAqugBAAAYAAAWAAAEAAAgEAAAhCAAAsIAAA3CAAAuJAAAhFAAAmEAAA2BAAA96gBAAA0ghBAAAgCA",
    "AAvghBAAAumhBAAAGAAAog3HAAA-42HAAAOAAAxqhBAAAqshBAAA9jqBAAAm-hJAAAwLAAAvq5IAAASAAAy9hBAAA6EAA",
    "A6JAAA2MAAAml4HAAA5-3HAAAsBAAA0FAAA4FAAAw74HAAA1y7BAAAxj9FAAAdAAAoDAAA8u9FAAAzg9FAAAoGAAA0p7H",
    "AAA2BAAAx16HAAA6FAAAgCAAA6h7HAAAlh7HAAA6RAAA+JAAACAAA3FAAA6XAAA4BAAAq+7HAAA9m7HAAAr-lBAAAkimB",
    "AAAg87HAAAh5hJAAA6tmBAAAhxcAAAi3cAAAki9HAAAqNAAA36jJAAAQAAA02mBAAA0i+HAAAv1kJAAAo+kJAAA1o+HAA",
    "AAAAA8BAAA64+HAAAnt+HAAA96mBAAAs-mBAAA8HAAA2BAAA4DAAA-inBAAAk2nJAAA7hgIAAA8SAAA6LAAA9ioBAAA+B",
    "AAA0noBAAAu2hIAAAr9pJAAA6gqJAAAyQAAAmIAAAr9hIAAAp2oBAAAm6oBAAAKAAAOAAAUAAAOAAAqCAAAqsjIA",
    NULL};
/* End of the generated tables. */

typedef struct db__unicode_row {
    uint32_t first, last;
    int32_t a, b;
} db__unicode_row;

typedef struct db__unicode_table {
    db__unicode_row *row;
    size_t count;
} db__unicode_table;

struct db__unicode {
    db__unicode_table classes, lower, combining, pairs, singles;
};

/* Digits to the base 32, lowest first; values from 32 on say that another digit follows. */
static uint32_t db__unpack_number(const char **text)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                   "0123456789+-";
    uint32_t value = 0, digit;
    int shift = 0;
    do {
        digit = (uint32_t)(strchr(alphabet, *(*text)++) - alphabet);
        value |= (digit & 31) << shift;
        shift += 5;
    } while (digit & 32);
    return value;
}

static int32_t db__unpack_signed(const char **text)
{
    uint32_t n = db__unpack_number(text);
    return n & 1 ? -(int32_t)(n / 2) - 1 : (int32_t)(n / 2);
}

/* Unpacks a table: every number is the difference from the row before. */
static void db__unpack_table(db_ctx *ctx, const char *const *lines, db__unicode_table *table)
{
    db__text all;
    const char *text;
    db__unicode_row row = {0, 0, 0, 0};
    void *rows = NULL;
    size_t capacity = 0;
    memset(&all, 0, sizeof all);
    all.ctx = ctx;
    for (; *lines; lines++) db__text_append(&all, *lines, strlen(*lines));
    row.last = (uint32_t)-1;
    for (text = all.data; ctx->result == DB_OK && *text;) {
        row.first = row.last + 1 + db__unpack_number(&text);
        row.last = row.first + db__unpack_number(&text);
        row.a += db__unpack_signed(&text);
        row.b += db__unpack_signed(&text);
        if (!(rows = db__grow(ctx, rows, &capacity, table->count + 1, sizeof row))) break;
        table->row = (db__unicode_row *)rows;
        table->row[table->count++] = row;
    }
    db__text_free(&all);
}

static struct db__unicode *db__load_unicode(db_ctx *ctx)
{
    struct db__unicode *u = (struct db__unicode *)db__alloc(ctx, 1, sizeof *u);
    if (!u) return NULL;
    db__unpack_table(ctx, db__unicode_classes, &u->classes);
    db__unpack_table(ctx, db__unicode_lower, &u->lower);
    db__unpack_table(ctx, db__unicode_combining, &u->combining);
    db__unpack_table(ctx, db__unicode_pairs, &u->pairs);
    db__unpack_table(ctx, db__unicode_singles, &u->singles);
    return u;
}

static void db__free_unicode(db_ctx *ctx, struct db__unicode *u)
{
    if (!u) return;
    db__free(ctx, u->classes.row);
    db__free(ctx, u->lower.row);
    db__free(ctx, u->combining.row);
    db__free(ctx, u->pairs.row);
    db__free(ctx, u->singles.row);
    db__free(ctx, u);
}

/* The row that holds a code point, or NULL. */
static const db__unicode_row *db__unicode_find(const db__unicode_table *t, uint32_t code)
{
    size_t low = 0, high = t->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->row[middle].last < code) low = middle + 1;
        else high = middle;
    }
    return low < t->count && t->row[low].first <= code ? &t->row[low] : NULL;
}

enum { DB__OTHER = 0, DB__LETTER = 1, DB__NUMBER = 2, DB__SPACE = 3 };

/* Which of \p{L}, \p{N}, \s a code point is. */
static int db__class(const struct db__unicode *u, uint32_t c)
{
    const db__unicode_row *row;
    if ((c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680
        || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F
        || c == 0x3000)
        return DB__SPACE;
    row = db__unicode_find(&u->classes, c);
    return row ? row->a : DB__OTHER;
}

static int db__combining_class(const struct db__unicode *u, uint32_t c)
{
    const db__unicode_row *row = db__unicode_find(&u->combining, c);
    return row ? row->a : 0;
}

/* Korean syllables are composed by arithmetic: 19 leads x 21 vowels x (none or 27 tails). */
enum { DB__LEAD = 0x1100, DB__VOWEL = 0x1161, DB__TAIL = 0x11A7, DB__SYLLABLE = 0xAC00 };

/* Writes a code point's canonical decomposition, at most 4; returns how many. */
static size_t db__decompose(const struct db__unicode *u, uint32_t c, uint32_t *out)
{
    const db__unicode_row *row;
    size_t n;
    if (c >= DB__SYLLABLE && c < DB__SYLLABLE + 19 * 21 * 28) {
        c -= DB__SYLLABLE;
        out[0] = DB__LEAD + c / (21 * 28);
        out[1] = DB__VOWEL + c / 28 % 21;
        out[2] = DB__TAIL + c % 28;
        return c % 28 ? 3 : 2;
    }
    row = db__unicode_find(&u->pairs, c);
    if (!row) row = db__unicode_find(&u->singles, c);
    if (!row) {
        out[0] = c;
        return 1;
    }
    n = db__decompose(u, (uint32_t)row->a, out); /* the first part may go on, the second never */
    if (row->b) out[n++] = (uint32_t)row->b;
    return n;
}

/* What a and b compose to, or 0. */
static uint32_t db__compose(const struct db__unicode *u, uint32_t a, uint32_t b)
{
    size_t i;
    if (a >= DB__LEAD && a < DB__LEAD + 19 && b >= DB__VOWEL && b < DB__VOWEL + 21)
        return DB__SYLLABLE + ((a - DB__LEAD) * 21 + (b - DB__VOWEL)) * 28;
    if (a >= DB__SYLLABLE && a < DB__SYLLABLE + 19 * 21 * 28 && (a - DB__SYLLABLE) % 28 == 0
        && b > DB__TAIL && b < DB__TAIL + 28)
        return a + (b - DB__TAIL);
    for (i = 0; i < u->pairs.count; i++)
        if ((uint32_t)u->pairs.row[i].a == a && (uint32_t)u->pairs.row[i].b == b)
            return u->pairs.row[i].first;
    return 0;
}

/* Normalisation form C (Unicode Standard Annex 15), in place; `code` has room for 4 * n. `work` has
   the same size. Returns the new length. */
static size_t db__nfc(const struct db__unicode *u, uint32_t *code, size_t n, uint32_t *work)
{
    size_t i, j, k, total = 0, starter = 0, used = 0, first[257];
    int previous = -1; /* combining class of the last character that stayed behind the starter */
    for (i = 0; i < n && code[i] < 0x300; i++) {}
    if (i == n) return n; /* below U+0300 all are composed, and no two compose */
    for (i = 0; i < n; i++) total += db__decompose(u, code[i], work + total);

    /* Marks behind a character go into the order of their classes, at most 254; equal ones stay as
       they are. A counting sort, since a prompt may be nothing but marks. */
    for (i = 0; i < total; i = DB__MAX(j, i + 1)) {
        for (j = i; j < total && db__combining_class(u, work[j]) > 0; j++) {}
        if (j - i < 2) continue;
        memset(first, 0, sizeof first);
        for (k = i; k < j; k++) first[db__combining_class(u, work[k]) + 1]++;
        for (k = 1; k < 257; k++) first[k] += first[k - 1];
        for (k = i; k < j; k++) code[first[db__combining_class(u, work[k])]++] = work[k];
        memcpy(work + i, code, (j - i) * sizeof *work);
    }
    /* Each character joins the starter before it, unless one of its own or a lower class stands
       between them. */
    for (i = 0; i < total; i++) {
        uint32_t c = work[i], joined = 0;
        int class_ = db__combining_class(u, c);
        if (used > 0 && db__combining_class(u, code[starter]) == 0
            && (used == starter + 1 || previous < class_))
            joined = db__compose(u, code[starter], c);
        if (joined) {
            code[starter] = joined;
            continue;
        }
        if (class_ == 0) starter = used;
        previous = class_;
        code[used++] = c;
    }
    return used;
}

/* ---- CLIP: byte pair encoding ----------------------------------------------------------------
   A word is the UTF-8 bytes of a run of letters, of one number, or of a run of other characters.
   Each byte has a printable stand-in in the vocabulary (and the last one of a word "</w>" behind
   it); then the pair of neighbours that comes first in merges.txt is merged, the leftmost of equal
   ones, until none is left.                                                                      */

enum { DB__MAX_WORD = 16384 }; /* characters: merging takes time like their square */

/* The stand-in of a byte: itself where Latin-1 has a visible character, else the next free one from
   U+0100 on. */
static uint32_t db__byte_symbol(int byte)
{
    if (byte < 33) return 256 + (uint32_t)byte;
    if (byte > 126 && byte < 161) return 256 + (uint32_t)byte - 127 + 33;
    return byte == 173 ? 256 + 33 + 34 : (uint32_t)byte;
}

static int db__by_pair(const void *a, const void *b)
{
    uint64_t x = ((const db__merge *)a)->pair, y = ((const db__merge *)b)->pair;
    return x < y ? -1 : x > y;
}

static uint64_t db__pair(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static const db__merge *db__find_merge(const db_tokenizer *tok, int32_t left, int32_t right)
{
    db__merge key;
    if (tok->merge_count == 0) return NULL;
    memset(&key, 0, sizeof key);
    key.pair = db__pair(left, right);
    return (const db__merge *)bsearch(&key, tok->merge, tok->merge_count, sizeof key, db__by_pair);
}

/* Merges a word's n symbols in place; `rank` has room for n. Returns how many are left. */
static size_t db__merge_word(const db_tokenizer *tok, int32_t *symbol, int32_t *rank, size_t n)
{
    size_t i, best;
    const db__merge *m;
    for (i = 0; i + 1 < n; i++) {
        m = db__find_merge(tok, symbol[i], symbol[i + 1]);
        rank[i] = m ? m->rank : INT32_MAX;
    }
    while (n > 1) {
        for (best = 0, i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        m = db__find_merge(tok, symbol[best], symbol[best + 1]);
        symbol[best] = m->result;
        n--;
        memmove(symbol + best + 1, symbol + best + 2, (n - best - 1) * sizeof *symbol);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        /* Only the pairs that the new symbol is part of have changed. */
        for (i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            m = db__find_merge(tok, symbol[i], symbol[i + 1]);
            rank[i] = m ? m->rank : INT32_MAX;
        }
    }
    return n;
}

/* Appends the ids of one word. */
static void db__encode_word(const db_tokenizer *tok, const uint32_t *code, size_t n, db__ids *ids)
{
    int32_t *symbol;
    size_t i, j, bytes = 0;
    if (n > DB__MAX_WORD) {
        db__fail(tok->ctx, DB_ERROR_ARGUMENT, "a word of %zu characters is too long", n);
        return;
    }
    symbol = (int32_t *)db__alloc(tok->ctx, n * 8, sizeof *symbol); /* symbols and ranks */
    if (!symbol) return;
    for (i = 0; i < n; i++) {
        char utf8[4];
        size_t length = db__utf8_encode(code[i], utf8);
        for (j = 0; j < length; j++) {
            int is_last = i + 1 == n && j + 1 == length;
            int32_t id = (is_last ? tok->last_byte_id : tok->byte_id)[(unsigned char)utf8[j]];
            symbol[bytes++] = id >= 0 ? id : tok->special[DB_SPECIAL_UNK];
        }
    }
    bytes = db__merge_word(tok, symbol, symbol + n * 4, bytes);
    for (i = 0; i < bytes; i++) db__ids_push(ids, symbol[i]);
    db__free(tok->ctx, symbol);
}

/* How many characters the word at `code` has; n > 0, no space at its start. */
static size_t db__word_length(const struct db__unicode *u, const uint32_t *code, size_t n)
{
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    int class_ = db__class(u, code[0]);
    size_t length, i, j;
    if (class_ == DB__NUMBER) return 1;
    for (i = 0; code[0] == '\'' && i < 7; i++) { /* 's, 't, ... are words, whatever follows */
        size_t m = strlen(endings[i]);
        for (j = 0; j < m && j + 1 < n && code[j + 1] == (uint32_t)endings[i][j]; j++) {}
        if (j == m) return m + 1;
    }
    for (length = 1; length < n && db__class(u, code[length]) == class_; length++) {}
    return length;
}

/* Encodes `bytes` of text that holds no special token. */
static void db__clip_encode_part(const db_tokenizer *tok, const char *text, size_t bytes,
                                 db__ids *ids)
{
    const struct db__unicode *u = tok->unicode;
    uint32_t *code, *work;
    size_t i, n = 0, m = 0, length;
    int overflow = 0;
    size_t room = db__mul(bytes, 5, &overflow);
    if (bytes == 0) return;
    code = overflow ? NULL : (uint32_t *)db__alloc(tok->ctx, room, 2 * sizeof *code);
    if (!code) return;
    work = code + room;
    for (i = 0; i < bytes; i += length ? length : 1) {
        length = db__utf8_decode(text + i, bytes - i, &code[n]);
        if (!length) code[n] = 0xFFFD;
        n++;
    }
    n = db__nfc(u, code, n, work);
    for (i = 0; i < n; i++) { /* lower case, into `work` */
        uint32_t c = code[i];
        const db__unicode_row *row = db__unicode_find(&u->lower, c);
        if (row && (c - row->first) % (uint32_t)row->b == 0) c = (uint32_t)((int32_t)c + row->a);
        work[m++] = c == 0x130 ? 'i' : c;
        if (c == 0x130) work[m++] = 0x307; /* the Turkish capital I with a dot keeps the dot */
    }
    for (i = 0; i < m; i += length) {
        length = 1;
        if (db__class(u, work[i]) == DB__SPACE) continue;
        length = db__word_length(u, work + i, m - i);
        db__encode_word(tok, work + i, length, ids);
    }
    db__free(tok->ctx, code);
}

/* Special tokens are found in the raw text; the parts between them are encoded. */
static void db__clip_encode(const db_tokenizer *tok, const char *text, db__ids *ids)
{
    const char *bos = tok->piece[tok->special[DB_SPECIAL_BOS]].text;
    const char *eos = tok->piece[tok->special[DB_SPECIAL_EOS]].text;
    while (tok->ctx->result == DB_OK) {
        const char *b = strstr(text, bos), *e = strstr(text, eos);
        const char *next = b && (!e || b < e) ? b : e;
        db__clip_encode_part(tok, text, next ? (size_t)(next - text) : strlen(text), ids);
        if (!next) break;
        db__ids_push(ids, tok->special[next == b ? DB_SPECIAL_BOS : DB_SPECIAL_EOS]);
        text = next + strlen(next == b ? bos : eos);
    }
}

/* ---- CLIP: vocab.json and merges.txt --------------------------------------------------------- */

/* Takes the pieces from an object {text: id}, whose ids must be 0 ... count-1. */
static db_result db__read_vocabulary(db_tokenizer *tok, const char *name, const db_json *vocabulary)
{
    db_ctx *ctx = tok->ctx;
    const db_json *item;
    size_t bytes = 0;
    char *text;
    if (!vocabulary || vocabulary->type != DB_JSON_OBJECT || vocabulary->count == 0
        || vocabulary->count > INT32_MAX)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: the vocabulary is not an object {text: id}",
                        name);
    for (item = vocabulary->first; item; item = item->next) bytes += item->key_length + 1;
    tok->size = vocabulary->count;
    tok->piece = (db__piece *)db__alloc(ctx, tok->size, sizeof *tok->piece);
    tok->sorted = (const db__piece **)db__alloc(ctx, tok->size, sizeof *tok->sorted);
    tok->texts = text = (char *)db__alloc(ctx, bytes, 1);
    if (!tok->piece || !tok->sorted || !tok->texts) return ctx->result;
    for (item = vocabulary->first; item; item = item->next) {
        db__piece *p;
        if (!item->is_integer || item->integer < 0 || (uint64_t)item->integer >= tok->size)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s:%zu: the id of \"%s\" is not a number below"
                            " the size of the vocabulary, %zu", name, item->line, item->key,
                            tok->size);
        p = &tok->piece[item->integer];
        if (p->text)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s:%zu: \"%s\" has the id of \"%s\"", name,
                            item->line, item->key, p->text);
        p->type = DB__PIECE_NORMAL;
        p->length = (uint32_t)item->key_length;
        p->text = (const char *)memcpy(text, item->key, item->key_length + 1);
        text += item->key_length + 1;
    }
    return db__sort_pieces(tok, name, 0);
}

/* The normal piece spelt by these bytes, or -1. */
static int32_t db__find_piece(const db_tokenizer *tok, const char *text, size_t n)
{
    db__piece key;
    const db__piece *p = &key;
    const void *found;
    memset(&key, 0, sizeof key);
    key.text = text;
    key.length = (uint32_t)n;
    found = bsearch(&p, tok->sorted, tok->sorted_count, sizeof *tok->sorted, db__by_piece_text);
    return found ? (int32_t)(*(const db__piece *const *)found - tok->piece) : -1;
}

/* Adds the merge of two pieces; all three must be in the vocabulary. */
static int db__add_merge(db_tokenizer *tok, db__text *both, const char *left, size_t left_bytes,
                         const char *right, size_t right_bytes)
{
    void *merges = tok->merge;
    int32_t a = db__find_piece(tok, left, left_bytes), b = db__find_piece(tok, right, right_bytes);
    int32_t result;
    db__merge *m;
    both->length = 0;
    db__text_append(both, left, left_bytes);
    db__text_append(both, right, right_bytes);
    if (!(merges =
              db__grow(tok->ctx, merges, &tok->merge_capacity, tok->merge_count + 1, sizeof *m)))
        return 0;
    tok->merge = (db__merge *)merges;
    result = both->data ? db__find_piece(tok, both->data, both->length) : -1;
    if (a < 0 || b < 0 || result < 0) return 0;
    m = &tok->merge[tok->merge_count];
    m->pair = db__pair(a, b);
    m->rank = (int32_t)tok->merge_count++;
    m->result = result;
    tok->piece[result].score = -(float)tok->merge_count;
    return 1;
}

/* Lines "left right", the first merge first; a first line "#version..." is none. */
static void db__read_merges(db_tokenizer *tok, const char *name, const char *text, size_t bytes)
{
    const char *end = text + bytes, *line, *stop, *next, *space;
    size_t number = 1;
    db__text both;
    memset(&both, 0, sizeof both);
    both.ctx = tok->ctx;
    for (line = text; line < end && tok->ctx->result == DB_OK; line = next, number++) {
        stop = (const char *)memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        stop = stop ? stop : end;
        if (stop > line && stop[-1] == '\r') stop--;
        if (stop == line || (number == 1 && *line == '#')) continue;
        space = (const char *)memchr(line, ' ', (size_t)(stop - line));
        if (!space || !db__add_merge(tok, &both, line, (size_t)(space - line), space + 1,
                                     (size_t)(stop - space - 1)))
            db__fail(tok->ctx, DB_ERROR_FORMAT, "%s:%zu: \"%.*s\" is not two pieces of the"
                     " vocabulary that make a third", name, number,
                     (int)DB__MIN(stop - line, 100), line);
    }
    db__text_free(&both);
}

/* The same from tokenizer.json: strings "left right" or arrays [left, right]. */
static void db__read_json_merges(db_tokenizer *tok, const char *name, const db_json *merges)
{
    const db_json *item = merges ? merges->first : NULL;
    db__text both;
    memset(&both, 0, sizeof both);
    both.ctx = tok->ctx;
    if (!merges || merges->type != DB_JSON_ARRAY)
        db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: has no array of merges", name);
    for (; item && tok->ctx->result == DB_OK; item = item->next) {
        const db_json *a = db_json_at(item, 0), *b = db_json_at(item, 1);
        const char *space = item->type == DB_JSON_STRING ? strchr(item->string, ' ') : NULL;
        int ok = 0;
        if (space)
            ok = db__add_merge(tok, &both, item->string, (size_t)(space - item->string), space + 1,
                               strlen(space + 1));
        else if (a && b && a->type == DB_JSON_STRING && b->type == DB_JSON_STRING)
            ok = db__add_merge(tok, &both, a->string, a->length, b->string, b->length);
        if (!ok)
            db__fail(tok->ctx, DB_ERROR_FORMAT, "%s:%zu: merge %zu is not two pieces of the"
                     " vocabulary that make a third", name, item->line, tok->merge_count);
    }
    db__text_free(&both);
}

/* Special tokens, the pieces of single bytes, merges in the order of look-ups. */
static db_result db__finish_clip(db_tokenizer *tok, const char *name)
{
    static const char start[] = "<|startoftext|>", end[] = "<|endoftext|>";
    size_t i, n;
    int byte;
    if (tok->ctx->result != DB_OK) return tok->ctx->result;
    tok->special[DB_SPECIAL_BOS] = db__find_piece(tok, start, strlen(start));
    tok->special[DB_SPECIAL_EOS] = db__find_piece(tok, end, strlen(end));
    if (tok->special[DB_SPECIAL_BOS] < 0 || tok->special[DB_SPECIAL_EOS] < 0)
        return db__fail(tok->ctx, DB_ERROR_MISSING, "%s: has no %s", name,
                        tok->special[DB_SPECIAL_BOS] < 0 ? start : end);
    tok->special[DB_SPECIAL_UNK] = tok->special[DB_SPECIAL_PAD] = tok->special[DB_SPECIAL_EOS];
    for (byte = 0; byte < 256; byte++) {
        char text[8];
        n = db__utf8_encode(db__byte_symbol(byte), text);
        tok->byte_id[byte] = db__find_piece(tok, text, n);
        memcpy(text + n, "</w>", 4);
        tok->last_byte_id[byte] = db__find_piece(tok, text, n + 4);
    }
    if (tok->merge_count) qsort(tok->merge, tok->merge_count, sizeof *tok->merge, db__by_pair);
    for (i = 1; i < tok->merge_count; i++)
        if (tok->merge[i - 1].pair == tok->merge[i].pair)
            return db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: the merge to \"%s\" is there twice",
                            name, tok->piece[tok->merge[i].result].text);
    tok->unicode = db__load_unicode(tok->ctx);
    return tok->ctx->result;
}

db_result db_tokenizer_load_clip(db_ctx *ctx, const char *vocab_name, const char *vocab,
                                 size_t vocab_bytes, const char *merges_name, const char *merges,
                                 size_t merges_bytes, db_tokenizer **out)
{
    db_tokenizer *tok = db__new_tokenizer(ctx, DB_TOKENIZER_CLIP);
    const db_json *root;
    *out = NULL;
    if (!tok) return ctx->result;
    root = db_json_parse(ctx, vocab_name, vocab, vocab_bytes);
    if (root && db__read_vocabulary(tok, vocab_name, root) == DB_OK)
        db__read_merges(tok, merges_name, merges, merges_bytes);
    db_json_free(root);
    db__finish_clip(tok, vocab_name);
    return db__finish_tokenizer(tok, out);
}

/* ---- tokenizer.json --------------------------------------------------------------------------
   What transformers 5 saves instead of the files above: {"model": {"type", "vocab", ...},
   "normalizer", "added_tokens"}.                                                                */

/* Decodes base64 (RFC 4648); returns the number of bytes, or 0 when it is none. */
static size_t db__base64(const char *text, size_t n, unsigned char *out)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                   "0123456789+/";
    size_t used = 0, i;
    uint32_t bits = 0;
    int have = 0;
    while (n > 0 && text[n - 1] == '=') n--;
    for (i = 0; i < n; i++) {
        const char *digit = text[i] ? strchr(alphabet, text[i]) : NULL;
        if (!digit) return 0;
        bits = bits << 6 | (uint32_t)(digit - alphabet);
        have += 6;
        if (have >= 8) out[used++] = (unsigned char)(bits >> (have -= 8));
    }
    return used;
}

/* The normaliser's table, alone or in a sequence of normalisers. */
static void db__read_json_charsmap(db_tokenizer *tok, const char *name, const db_json *normalizer)
{
    const db_json *list = db_json_get(normalizer, "normalizers"), *item;
    const db_json *map = db_json_get(normalizer, "precompiled_charsmap");
    db__field field;
    unsigned char *bytes;
    for (item = list ? list->first : NULL; item && !map; item = item->next)
        map = db_json_get(item, "precompiled_charsmap");
    if (!map || map->type != DB_JSON_STRING || map->length == 0) return;
    bytes = (unsigned char *)db__alloc(tok->ctx, map->length, 1);
    memset(&field, 0, sizeof field);
    field.data = bytes;
    if (bytes) field.length = db__base64(map->string, map->length, bytes);
    if (bytes && field.length == 0)
        db__fail(tok->ctx, DB_ERROR_FORMAT, "%s:%zu: the normaliser's table is not base64", name,
                 map->line);
    if (tok->ctx->result == DB_OK) db__read_charsmap(tok, name, &field);
    db__free(tok->ctx, bytes);
}

/* "vocab": [[text, score], ...]; special "added_tokens" are no part of texts. */
static db_result db__read_unigram(db_tokenizer *tok, const char *name, const db_json *root)
{
    db_ctx *ctx = tok->ctx;
    const db_json *model = db_json_get(root, "model"), *vocab = db_json_get(model, "vocab"), *item;
    const db_json *added = db_json_get(root, "added_tokens");
    int64_t unknown = db_json_int(model, "unk_id", -1);
    size_t bytes = 0;
    char *text;
    if (db_json_bool(model, "byte_fallback", 0))
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: byte fallback needs spiece.model", name);
    if (!vocab || vocab->type != DB_JSON_ARRAY || vocab->count == 0 || vocab->count > INT32_MAX)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"vocab\" is not an array of pieces", name);
    for (item = vocab->first; item; item = item->next) {
        const db_json *t = db_json_at(item, 0), *score = db_json_at(item, 1);
        if (!t || !score || t->type != DB_JSON_STRING || score->type != DB_JSON_NUMBER)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s:%zu: piece %zu is not [text, score]", name,
                            item->line, tok->size);
        bytes += t->length + 1;
        tok->size++;
    }
    tok->piece = (db__piece *)db__alloc(ctx, tok->size, sizeof *tok->piece);
    tok->texts = text = (char *)db__alloc(ctx, bytes, 1);
    if (!tok->piece || !tok->texts) return ctx->result;
    tok->size = 0;
    for (item = vocab->first; item; item = item->next) {
        const db_json *t = db_json_at(item, 0);
        db__piece *p = &tok->piece[tok->size];
        p->type = unknown == (int64_t)tok->size++ ? DB__PIECE_UNKNOWN : DB__PIECE_NORMAL;
        p->score = (float)db_json_at(item, 1)->number;
        p->length = (uint32_t)t->length;
        p->text = (const char *)memcpy(text, t->string, t->length + 1);
        text += t->length + 1;
    }
    for (item = added ? added->first : NULL; item; item = item->next) {
        int64_t id = db_json_int(item, "id", -1);
        int is_special = db_json_bool(item, "special", 0);
        if (is_special && id >= 0 && (uint64_t)id < tok->size && id != unknown)
            tok->piece[id].type = DB__PIECE_CONTROL;
    }
    db__read_json_charsmap(tok, name, db_json_get(root, "normalizer"));
    return ctx->result;
}

static db_result db__load_tokenizer_json(db_ctx *ctx, const char *name, const db_json *root,
                                         db_tokenizer **out)
{
    const db_json *model = db_json_get(root, "model");
    const char *type = db_json_string(model, "type", "none");
    const char *suffix = db_json_string(model, "end_of_word_suffix", "");
    int is_unigram = strcmp(type, "Unigram") == 0;
    db_tokenizer *tok;
    if (!is_unigram && (strcmp(type, "BPE") != 0 || strcmp(suffix, "</w>") != 0))
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: neither T5's nor CLIP's tokenizer: its"
                        " model is of type \"%s\"", name, type);
    tok = db__new_tokenizer(ctx, is_unigram ? DB_TOKENIZER_T5 : DB_TOKENIZER_CLIP);
    if (!tok) return ctx->result;
    if (is_unigram) {
        if (db__read_unigram(tok, name, root) == DB_OK) db__finish_spiece(tok, name);
    } else {
        if (db__read_vocabulary(tok, name, db_json_get(model, "vocab")) == DB_OK)
            db__read_json_merges(tok, name, db_json_get(model, "merges"));
        db__finish_clip(tok, name);
    }
    return db__finish_tokenizer(tok, out);
}

db_result db_tokenizer_load_json(db_ctx *ctx, const char *name, const char *text, size_t bytes,
                                 db_tokenizer **out)
{
    const db_json *root = db_json_parse(ctx, name, text, bytes);
    *out = NULL;
    if (root) db__load_tokenizer_json(ctx, name, root, out);
    db_json_free(root);
    return ctx->result;
}

/* ---- both kinds ------------------------------------------------------------------------------ */

/* The ids of a text without markers; free ids.id with db__free. */
static db__ids db__encode(const db_tokenizer *tok, const char *text)
{
    db__ids ids;
    memset(&ids, 0, sizeof ids);
    ids.ctx = tok->ctx;
    if (tok->ctx->result != DB_OK) return ids;
    if (tok->kind == DB_TOKENIZER_T5) db__spiece_encode(tok, text, &ids);
    else db__clip_encode(tok, text, &ids);
    if (tok->ctx->result != DB_OK) ids.count = 0;
    return ids;
}

size_t db_tokenizer_split(const db_tokenizer *tok, const char *text, int32_t *ids, size_t capacity)
{
    db__ids all = db__encode(tok, text);
    if (DB__MIN(all.count, capacity) > 0)
        memcpy(ids, all.id, DB__MIN(all.count, capacity) * sizeof *ids);
    db__free(tok->ctx, all.id);
    return all.count;
}

db_result db_tokenize(const db_tokenizer *tok, const char *text, size_t max_length, int32_t *ids,
                      int32_t *mask, int *truncated)
{
    int32_t bos = tok->special[DB_SPECIAL_BOS];
    size_t markers = bos >= 0 ? 2 : 1, count, used = 0, i;
    db__ids all = db__encode(tok, text);
    if (truncated) *truncated = 0;
    if (max_length < markers)
        db__fail(tok->ctx, DB_ERROR_ARGUMENT, "db_tokenize: a maximal length of %zu has no room for"
                 " the %zu end markers", max_length, markers);
    if (tok->ctx->result == DB_OK) {
        count = DB__MIN(all.count, max_length - markers);
        if (truncated) *truncated = all.count > count;
        if (bos >= 0) ids[used++] = bos;
        for (i = 0; i < count; i++) ids[used++] = all.id[i];
        ids[used++] = tok->special[DB_SPECIAL_EOS];
        for (i = 0; mask && i < max_length; i++) mask[i] = i < used;
        while (used < max_length) ids[used++] = tok->special[DB_SPECIAL_PAD];
    }
    db__free(tok->ctx, all.id);
    return tok->ctx->result;
}

/* CLIP's padding, if the directory's small files name it: "pad_token": "!" or {"content": "!"}. */
static void db__read_pad_token(db_tokenizer *tok, const char *directory)
{
    static const char *const names[] = {"special_tokens_map.json", "tokenizer_config.json"};
    int i, found = 0;
    for (i = 0; i < 2 && !found; i++) {
        char *path = db__format(tok->ctx, "%s/%s", directory, names[i]);
        const db_json *root = path && db__file_exists(path) ? db_json_load(tok->ctx, path) : NULL;
        const db_json *pad = db_json_get(root, "pad_token");
        if (pad && pad->type == DB_JSON_OBJECT) pad = db_json_get(pad, "content");
        if (pad && pad->type == DB_JSON_STRING) {
            int32_t id = db__find_piece(tok, pad->string, pad->length);
            found = 1;
            if (id >= 0) tok->special[DB_SPECIAL_PAD] = id;
            else db__fail(tok->ctx, DB_ERROR_FORMAT, "%s: pad_token \"%s\" is not in the"
                          " vocabulary", path, pad->string);
        }
        db_json_free(root);
        db__free(tok->ctx, path);
    }
}

/* Loads one form of tokenizer from its file or files; the first says which form it is. */
static db_result db__load_form(db_ctx *ctx, int form, const char *path, const char *second,
                               db_tokenizer **out)
{
    db__mapping a, b;
    memset(&b, 0, sizeof b);
    if (db__map_file(ctx, path, &a) != DB_OK) return ctx->result;
    if (form == 1) db__map_file(ctx, second, &b);
    if (ctx->result == DB_OK && form == 0)
        db_tokenizer_load_spiece(ctx, path, a.data, a.bytes, out);
    else if (ctx->result == DB_OK && form == 1)
        db_tokenizer_load_clip(ctx, path, (const char *)a.data, a.bytes, second,
                               (const char *)b.data, b.bytes, out);
    else if (ctx->result == DB_OK)
        db_tokenizer_load_json(ctx, path, (const char *)a.data, a.bytes, out);
    db__unmap_file(ctx, &a);
    db__unmap_file(ctx, &b);
    return ctx->result;
}

db_result db_tokenizer_load(db_ctx *ctx, const char *path, db_tokenizer **out)
{
    static const char *const forms[] = {"spiece.model", "vocab.json", "tokenizer.json"};
    size_t n = strlen(path);
    int form, found = 0;
    char *merges;
    *out = NULL;
    if (ctx->result != DB_OK) return ctx->result;
    if (n > 6 && strcmp(path + n - 6, ".model") == 0) return db__load_form(ctx, 0, path, NULL, out);
    merges = db__format(ctx, "%s/merges.txt", path);
    for (form = 0; form < 3 && !found && merges; form++) {
        char *file = db__format(ctx, "%s/%s", path, forms[form]);
        found = file && db__file_exists(file) && (form != 1 || db__file_exists(merges));
        if (found) db__load_form(ctx, form, file, merges, out);
        db__free(ctx, file);
    }
    db__free(ctx, merges);
    if (!found)
        db__fail(ctx, DB_ERROR_MISSING, "%s: no tokenizer: neither spiece.model, nor vocab.json"
                 " with merges.txt, nor tokenizer.json is there", path);
    if (*out && (*out)->kind == DB_TOKENIZER_CLIP) db__read_pad_token(*out, path);
    if (ctx->result != DB_OK) {
        db_tokenizer_free(*out);
        *out = NULL;
    }
    return ctx->result;
}

size_t db_tokenizer_size(const db_tokenizer *tok) { return tok->size; }
db_tokenizer_kind db_tokenizer_kind_of(const db_tokenizer *tok) { return tok->kind; }

const char *db_tokenizer_piece(const db_tokenizer *tok, int32_t id)
{
    return id >= 0 && (size_t)id < tok->size ? tok->piece[id].text : NULL;
}

float db_tokenizer_score(const db_tokenizer *tok, int32_t id)
{
    return id >= 0 && (size_t)id < tok->size ? tok->piece[id].score : -INFINITY;
}

int32_t db_tokenizer_find(const db_tokenizer *tok, const char *piece)
{
    int32_t id = db__find_piece(tok, piece, strlen(piece));
    size_t i;
    for (i = 0; id < 0 && i < tok->size; i++) /* the few that text cannot contain */
        if (strcmp(tok->piece[i].text, piece) == 0) id = (int32_t)i;
    return id;
}

int32_t db_tokenizer_special(const db_tokenizer *tok, db_special which)
{
    return (unsigned)which < 4 ? tok->special[which] : -1;
}

/* ==== [DB-07] Networks; text encoders ============================================================

   Networks are functions that record themselves. A layer asks for its weights by name, relative to
   the scope it is in; while a model is being created that very call declares them, so the forward
   pass is the only description of the architecture. Shapes stand on every line.

   First what all networks share: layers by their state-dict names, weights in files, LoRA (Hu et
   al., 2021), configurations; then T5's encoder (Raffel et al., 2020, version 1.1) and CLIP's text
   tower (Radford et al., 2021), as transformers has them.

   Easy to get wrong
   - T5: no scale in attention (it is in the weights), one table of position biases, the first
     layer's, for all layers; RMS normalisation; no bias anywhere.
   - CLIP is causal, its activation QuickGELU in OpenAI's checkpoints, and Stable Diffusion reads
     its last states after the final normalisation, padding included.
   - diffusers' LoRA names differ between its scripts and peft: see [DB-07] LoRA below.          */

typedef struct db__net {
    db_tape *tape;
    db_param_table *params;
    int declaring;
    char scope[256]; /* "down_blocks.0.resnets.1." */
} db__net;

/* Extends the scope; returns the length to go back to with db__leave. */
DB__PRINTF(2, 3) static size_t db__enter(db__net *n, const char *format, ...)
{
    size_t length = strlen(n->scope), left = sizeof n->scope - length;
    int written;
    va_list args;
    va_start(args, format);
    written = vsnprintf(n->scope + length, left, format, args);
    va_end(args);
    if (written < 0 || (size_t)written + 2 > left) {
        db__fail(n->tape->ctx, DB_ERROR_ARGUMENT, "a parameter's name is too long: %s", n->scope);
        n->scope[length] = 0;
        return length;
    }
    strcat(n->scope, ".");
    return length;
}

static void db__leave(db__net *n, size_t length) { n->scope[length] = 0; }

/* The weight `name` of the present scope, in PyTorch's shape; unused dimensions are 0. */
static db_tensor db__weight(db__net *n, const char *name, size_t d0, size_t d1, size_t d2,
                            size_t d3)
{
    db_tape *t = n->tape;
    char full[320];
    size_t dim[4], k;
    int n_dims = d3 ? 4 : d2 ? 3 : d1 ? 2 : d0 ? 1 : 0;
    db_param *item;
    db_tensor w;
    if (t->ctx->result != DB_OK) return db_none;
    if (!n->declaring && db_params_fill(n->params) != DB_OK) return db_none;
    dim[0] = d0, dim[1] = d1, dim[2] = d2, dim[3] = d3;
    snprintf(full, sizeof full, "%s%s", n->scope, name);
    item = db_params_find(n->params, full);
    if (!item && n->declaring) item = db__params_declare(n->params, full, n_dims, dim);
    if (!item) {
        db__fail(t->ctx, DB_ERROR_MISSING, "the model has no parameter %s", full);
        return db_none;
    }
    if (item->n_dims != n_dims || memcmp(item->dim, dim, sizeof dim) != 0) {
        db_tensor asked = db_none, there = db_none;
        asked.n_dims = n_dims, there.n_dims = item->n_dims;
        memcpy(asked.dim, dim, sizeof dim);
        memcpy(there.dim, item->dim, sizeof dim);
        snprintf(full + strlen(full), sizeof full - strlen(full), ", for what it is given,");
        return db__shape_fail(t, full, there, asked);
    }
    for (k = 0; k < t->n_values; k++) /* a weight used twice is one value */
        if (t->value[k].kind == DB__PARAM && t->value[k].table == n->params &&
            n->params->item + t->value[k].param == item) {
            w = db_none;
            w.id = (int)k, w.n_dims = n_dims;
            memcpy(w.dim, dim, sizeof dim);
            return w;
        }
    w = db__new_value(t, DB__PARAM, DB_F32, n_dims, dim);
    if (w.id < 0) return w;
    t->value[w.id].table = n->params;
    t->value[w.id].param = (size_t)(item - n->params->item);
    t->value[w.id].needs_grad = n->params->grad != NULL && !item->frozen;
    return w;
}

/* What diffusers' scripts put a LoRA beside, by the names that the networks' forward passes use:
   not the q_proj of IF's pooled text. */
static const char *const db__lora_targets[] = {
    "to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"};

/* y + alpha / rank B (A x) where the network has a LoRA for the layer `name`, whose scope is the
   present one. While it is being declared: where it shall have one. x [...,IC], y [...,OC] */
static db_tensor db__low_rank(db__net *n, const char *name, db_tensor x, db_tensor y)
{
    db_param_table *network = n->params;
    db_lora *lora = network->lora;
    size_t k, targets = sizeof db__lora_targets / sizeof *db__lora_targets;
    char first[320];
    db_tensor a, b, low;
    if (!lora || y.id < 0) return y;
    for (k = 0; k < targets && strcmp(name, db__lora_targets[k]); k++) {}
    snprintf(first, sizeof first, "%slora_A.weight", n->scope);
    if (!(n->declaring && k < targets) && !db_params_find(&lora->params, first)) return y;
    n->params = &lora->params;
    a = db__weight(n, "lora_A.weight", lora->rank, x.dim[x.n_dims - 1], 0, 0); /* [rank,IC] */
    b = db__weight(n, "lora_B.weight", y.dim[y.n_dims - 1], lora->rank, 0, 0); /* [OC,rank] */
    n->params = network;
    low = db_linear(n->tape, x, a, db_none, db_none);                          /* [...,rank] */
    low = db_weighted_sum(n->tape, lora->alpha / (float)lora->rank, low, 0, db_none);
    return db_linear(n->tape, low, b, db_none, y);                             /* [...,OC] */
}

/* ---- layers by their state-dict names -------------------------------------------------------- */

static db_tensor db__linear_layer(db__net *n, const char *name, db_tensor x, size_t OC,
                                  int has_bias, db_tensor residual)
{
    size_t here = db__enter(n, "%s", name);
    db_tensor w =
        db__weight(n, "weight", OC, x.n_dims ? x.dim[x.n_dims - 1] : 1, 0, 0); /* [OC,IC] */
    db_tensor b = has_bias ? db__weight(n, "bias", OC, 0, 0, 0) : db_none;
    db_tensor y = db__low_rank(n, name, x, db_linear(n->tape, x, w, b, residual)); /* [...,OC] */
    db__leave(n, here);
    return y;
}

static db_tensor db__conv_stride_layer(db__net *n, const char *name, db_tensor x, size_t OC,
                                       size_t k, db_tensor residual, size_t stride,
                                       size_t pad_begin, size_t pad_end)
{
    size_t here = db__enter(n, "%s", name);
    db_tensor w = db__weight(n, "weight", OC, x.dim[3], k, k); /* [OC,IC,k,k] */
    db_tensor b = db__weight(n, "bias", OC, 0, 0, 0);
    db__leave(n, here);
    return db_conv2d(n->tape, x, w, b, residual, stride, pad_begin, pad_end); /* [B,H',W',OC] */
}

static db_tensor db__conv_layer(db__net *n, const char *name, db_tensor x, size_t OC, size_t k,
                                db_tensor residual)
{
    return db__conv_stride_layer(n, name, x, OC, k, residual, 1, k / 2, k / 2); /* [B,H,W,OC] */
}

static db_tensor db__group_norm_layer(db__net *n, const char *name, db_tensor x,
                                      db_tensor scale_shift, size_t groups, float eps,
                                      db_activation act)
{
    size_t here = db__enter(n, "%s", name), C = x.n_dims ? x.dim[x.n_dims - 1] : 1;
    db_tensor w = db__weight(n, "weight", C, 0, 0, 0), b = db__weight(n, "bias", C, 0, 0, 0);
    db__leave(n, here);
    return db_group_norm(n->tape, x, w, b, scale_shift, groups, eps, act);
}

static db_tensor db__layer_norm_layer(db__net *n, const char *name, db_tensor x, float eps)
{
    size_t here = db__enter(n, "%s", name), C = x.n_dims ? x.dim[x.n_dims - 1] : 1;
    db_tensor w = db__weight(n, "weight", C, 0, 0, 0), b = db__weight(n, "bias", C, 0, 0, 0);
    db__leave(n, here);
    return db_layer_norm(n->tape, x, w, b, eps);
}

static db_tensor db__rms_norm_layer(db__net *n, const char *name, db_tensor x, float eps)
{
    size_t here = db__enter(n, "%s", name);
    db_tensor w = db__weight(n, "weight", x.n_dims ? x.dim[x.n_dims - 1] : 1, 0, 0, 0);
    db__leave(n, here);
    return db_rms_norm(n->tape, x, w, eps);
}

/* ---- reading and writing a table of parameters ----------------------------------------------- */

static const char *db__dims(int n_dims, const size_t *dim, char buffer[96])
{
    db_tensor x = db_none;
    x.n_dims = DB__MIN(n_dims, 4);
    memcpy(x.dim, dim, (size_t)x.n_dims * sizeof *dim);
    return db__shape(x, buffer);
}

/* Replaces the first of the pairs' left sides that stands in `name` by its right side; 0 when none
   does. */
static int db__replace(char *name, const char *const (*pair)[2], size_t n)
{
    char copy[320];
    size_t k;
    for (k = 0; k < n; k++) {
        const char *found = strstr(name, pair[k][0]);
        if (!found) continue;
        snprintf(copy, sizeof copy, "%.*s%s%s", (int)(found - name), name, pair[k][1],
                 found + strlen(pair[k][0]));
        strcpy(name, copy);
        return 1;
    }
    return 0;
}

/* What files may call the parameter `name` of a network with that configuration, besides `name`:
   alternative 1, 2, ... into out [DB__NAME]; 0 when there are no more. */
enum { DB__NAME = 320 };
typedef int (*db__names)(const void *config, const char *name, int alternative, char *out);

static const db_file_tensor *db__find_renamed(const db_safetensors *st, const char *name,
                                              db__names names, const void *config)
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    char other[DB__NAME];
    int k;
    for (k = 1; !f && names && names(config, name, k, other); k++)
        f = db_safetensors_find(st, other);
    return f;
}

/* Equal shapes; [OC,IC,1,1], a convolution of single pixels, is [OC,IC]. */
static int db__same_shape(const db_file_tensor *f, const db_param *item)
{
    int d, most = DB__MAX(f->n_dims, item->n_dims);
    for (d = 0; d < most; d++)
        if ((d < f->n_dims ? f->dim[d] : 1) != (d < item->n_dims ? item->dim[d] : 1)) return 0;
    return f->n_dims == item->n_dims || (DB__MIN(f->n_dims, item->n_dims) == 2 && most == 4);
}

/* Fills a parameter from the file's tensor, a slice [IC,k,k] of the first dimension after the
   other; `row` has room for the largest slice on each thread. */
static void db__param_read(db_ctx *ctx, const db_param *item, const db_file_tensor *f, float *row,
                           size_t largest)
{
    size_t n = item->n_dims ? item->dim[0] : 1, bytes = f->bytes / n;
    ptrdiff_t k;
    DB__PARALLEL_FOR(ctx, static)
    for (k = 0; k < (ptrdiff_t)n; k++) {
        db_file_tensor slice = *f;
        size_t count = item->count / n;
        float *in = row + (size_t)db__thread_index() * largest,
              *out = item->data + (size_t)k * count;
        slice.data = (const char *)f->data + (size_t)k * bytes, slice.count = count,
        slice.bytes = bytes;
        db_file_tensor_to_f32(&slice, item->n_dims == 4 ? in : out);
        if (item->n_dims == 4) db__kernel_set(item, item->data, (size_t)k, in);
    }
}

/* Where the weights still are: an open file, and in it a tensor for each parameter. */
typedef struct db__source {
    db_safetensors *st;
    const db_file_tensor **tensor;
} db__source;

static void db__source_free(db_ctx *ctx, db__source *source)
{
    if (!source) return;
    db_safetensors_close(source->st);
    db__free(ctx, source->tensor);
    db__free(ctx, source);
}

/* Logs message k, from 1, of many alike: the first ten, and that there are more. */
DB__PRINTF(3, 4) static void db__log_some(db_ctx *ctx, size_t k, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (k <= 10) db__log(ctx, DB_LOG_WARNING, "%s", line);
    if (k == 11) db__log(ctx, DB_LOG_WARNING, "and more of the kind");
}

/* Finds every parameter in an open file, which stays open until they have been read. After an
   error, of which all but the first tensor go to the log, the table is as it was. */
static db_result db__params_find_in(db_param_table *p, db_safetensors *st, const char *what,
                                    db__names names, const void *config)
{
    db_ctx *ctx = p->ctx;
    size_t k, misfits = 0;
    db__source *source;
    if (ctx->result != DB_OK || !(source = (db__source *)db__alloc(ctx, 1, sizeof *source)))
        return ctx->result;
    source->st = st, st->shared++;
    source->tensor = (const db_file_tensor **)db__alloc(ctx, p->n + 1, sizeof(void *));
    for (k = 0; k < p->n && source->tensor; k++) {
        db_param *item = &p->item[k];
        const db_file_tensor *f = db__find_renamed(st, item->name, names, config);
        char wanted[96], found[96], other[DB__NAME] = "";
        source->tensor[k] = f;
        if (f && db__same_shape(f, item)) continue;
        misfits++;
        if (ctx->result != DB_OK) {
            db__log_some(ctx, misfits - 1, "%s: the tensor %s %s %s", what, item->name,
                         db__dims(item->n_dims, item->dim, wanted),
                         f ? "has another shape, too" : "is missing, too");
        } else if (!f) {
            if (names && !names(config, item->name, 1, other)) *other = 0;
            db__fail(ctx, DB_ERROR_MISSING, "%s: the tensor %s %s is missing%s%s", what, item->name,
                     db__dims(item->n_dims, item->dim, wanted),
                     *other ? ", under this name and under " : "", other);
        } else {
            db__fail(ctx, DB_ERROR_SHAPE,
                     "%s: the tensor %s has shape %s, the configuration asks for %s", what, f->name,
                     db__dims(f->n_dims, f->dim, found), db__dims(item->n_dims, item->dim, wanted));
        }
    }
    if (ctx->result == DB_OK) {
        db__source *old = p->source;
        p->source = source, source = old;
    }
    db__source_free(ctx, source);
    return ctx->result;
}

db_result db_params_fill(db_param_table *p)
{
    db_ctx *ctx = p->ctx;
    size_t k, largest = 16;
    float *row;
    if (ctx->result != DB_OK || !p->source) return ctx->result;
    if (!p->data && db__params_allocate(p) != DB_OK) return ctx->result;
    for (k = 0; k < p->n; k++)
        if (p->item[k].n_dims == 4)
            largest = DB__MAX(largest, p->item[k].count / p->item[k].dim[0] + 16);
    row = (float *)db__alloc(ctx, largest, (size_t)db__threads(ctx) * sizeof(float));
    for (k = 0; k < p->n && row; k++) {
        db__param_read(ctx, &p->item[k], p->source->tensor[k], row, largest);
        db__file_tensor_forget(p->source->st, p->source->tensor[k]);
    }
    if (row) db__source_free(ctx, p->source), p->source = NULL;
    db__free(ctx, row);
    return ctx->result;
}

db_result db_params_load(db_param_table *p, db_safetensors *st, const char *what)
{
    if (db__params_find_in(p, st, what, NULL, NULL) != DB_OK) return p->ctx->result;
    return db_params_fill(p);
}

/* Declares a table's tensors (`values` NULL) or writes them, under their own names or under
   alternative 1 of `names`. */
static void db__params_write(db_safetensors_writer *w, const db_param_table *p, const float *values,
                             db_dtype dtype, db__names names, const void *config)
{
    size_t k, largest = 1;
    float *row = NULL;
    for (k = 0; k < p->n; k++) largest = DB__MAX(largest, p->item[k].count);
    if (values && !(row = (float *)db__alloc(p->ctx, largest, sizeof(float)))) return;
    for (k = 0; k < p->n; k++) {
        const db_param *item = &p->item[k];
        char other[DB__NAME];
        const char *name = names && names(config, item->name, 1, other) ? other : item->name;
        if (!values && item->n_dims == 2 &&
            strstr(name, ".attn_1.")) { /* LDM's autoencoder: 1x1 convolutions */
            size_t dim[4];
            dim[0] = item->dim[0], dim[1] = item->dim[1], dim[2] = dim[3] = 1;
            db_safetensors_declare(w, name, dtype, 4, dim);
        } else if (!values) {
            db_safetensors_declare(w, name, dtype, item->n_dims, item->dim);
        } else {
            db_param_get(item, values + (item->data - p->data), row);
            db_safetensors_write_f32(w, name, row);
        }
    }
    db__free(p->ctx, row);
}

db_result db_params_save(const db_param_table *p, const float *values, const char *path,
                         db_dtype dtype)
{
    db_safetensors_writer *w;
    if (!values || (values == p->data && p->source))
        return db__fail(p->ctx, DB_ERROR_ARGUMENT,
                        "%s: no weights to write; db_params_fill reads a network's", path);
    w = db_safetensors_create(p->ctx, path);
    db__params_write(w, p, NULL, dtype, NULL, NULL);
    db__params_write(w, p, values, dtype, NULL, NULL);
    return w ? db_safetensors_finish(w) : p->ctx->result;
}

/* "DIRECTORY/NAME" in a buffer of DB__PATH bytes. */
enum { DB__PATH = 4096 };
static int db__join(db_ctx *ctx, char *out, const char *directory, const char *name)
{
    if (snprintf(out, DB__PATH, "%s/%s", directory, name) < DB__PATH) return 1;
    db__fail(ctx, DB_ERROR_ARGUMENT, "the path %s/%s is too long", directory, name);
    return 0;
}

/* Of a network: names are looked up one by one, and a file must not say how long that takes. Of
   channels: products of two fit in memory's sizes. */
enum { DB__MOST_LAYERS = 1024, DB__MOST_CHANNELS = 1 << 20 };

/* A size from config.json; it must be there and positive. */
static size_t db__config_size(db_ctx *ctx, const db_json *j, const char *key, const char *path)
{
    int64_t v = db_json_int(j, key, 0);
    if (v < 1 || v > 1 << 30)
        db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" must be a positive number", path, key);
    return (size_t)DB__MAX(v, 1);
}

/* A size that config.json may leave out. */
static size_t db__config_size_or(db_ctx *ctx, const db_json *j, const char *key, size_t otherwise,
                                 const char *path)
{
    const db_json *item = db_json_get(j, key);
    return item && item->type != DB_JSON_NULL ? db__config_size(ctx, j, key, path) : otherwise;
}

/* diffusers' and transformers' names of activation functions. */
static db_activation db__activation_named(db_ctx *ctx, const char *name, const char *path)
{
    if (!name) return DB_ACT_NONE;
    if (!strcmp(name, "silu") || !strcmp(name, "swish")) return DB_ACT_SILU;
    if (!strcmp(name, "gelu")) return DB_ACT_GELU;
    if (!strcmp(name, "gelu_new")) return DB_ACT_GELU_TANH;
    if (!strcmp(name, "quick_gelu")) return DB_ACT_QUICK_GELU;
    if (!strcmp(name, "relu")) return DB_ACT_RELU;
    db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the activation function \"%s\" is not known", path,
             name);
    return DB_ACT_NONE;
}

/* ---- config.json + weights -> network -------------------------------------------------------- */

/* A kind of network: a struct that begins with its db_param_table and holds its configuration. */
typedef struct db__network {
    size_t bytes, config,
        config_bytes;    /* of the struct; where in it the configuration lies; of that */
    const char *weights; /* name of the file, without .safetensors                      */
    db_result (*parse)(db_ctx *ctx, const db_json *j, const char *path, void *config);
    /* refuses numbers that do not make a network; `what` stands in messages */
    db_result (*check)(db_ctx *ctx, const void *config, const char *what);
    /* runs the forward pass on the smallest input */
    void (*record)(db__net *n, const void *config);
    db__names names; /* what older or newer files call its tensors, or NULL         */
} db__network;

/* What config.json says, once its numbers make a network; `j` may be NULL after an error. */
static db_result db__config_read(db_ctx *ctx, const db__network *kind, const db_json *j,
                                 const char *path, void *config)
{
    memset(config, 0, kind->config_bytes);
    if (j && kind->parse(ctx, j, path, config) == DB_OK) kind->check(ctx, config, path);
    return ctx->result;
}

static db_result db__config_load(db_ctx *ctx, const db__network *kind, const char *path,
                                 void *config)
{
    const db_json *j = db_json_load(ctx, path);
    db__config_read(ctx, kind, j, path, config);
    db_json_free(j);
    return ctx->result;
}

static void db__network_free(void *network)
{
    db_param_table *params = (db_param_table *)network;
    db_ctx *ctx = params ? params->ctx : NULL;
    if (!params) return;
    db__params_free(params);
    db__free(ctx, network);
}

/* Declares the parameters by recording the forward pass once; without room for them yet. */
static void *db__network_declare(db_ctx *ctx, const db__network *kind, const void *config)
{
    char *network = (char *)db__alloc(ctx, 1, kind->bytes);
    db_param_table *params = (db_param_table *)(void *)network;
    db__net n;
    memset(&n, 0, sizeof n);
    if (!network) return NULL;
    params->ctx = ctx;
    memcpy(network + kind->config, config, kind->config_bytes);
    n.params = params, n.declaring = 1;
    if (db_tape_create(ctx, &n.tape) == DB_OK) kind->record(&n, config);
    db_tape_destroy(n.tape);
    if (ctx->result == DB_OK) return network;
    db__network_free(network);
    return NULL;
}

/* A network whose parameters are zero. */
static void *db__network_create(db_ctx *ctx, const db__network *kind, const void *config,
                                const char *what)
{
    void *network =
        kind->check(ctx, config, what) == DB_OK ? db__network_declare(ctx, kind, config) : NULL;
    if (!network || db__params_allocate((db_param_table *)network) == DB_OK) return network;
    db__network_free(network);
    return NULL;
}

/* Finds a network's weights in an open file, and says what in the file no parameter took. */
static db_result db__network_find_in(const db__network *kind, db_param_table *params,
                                     db_safetensors *st)
{
    db_ctx *ctx = params->ctx;
    const char *what = st->shard[0].name;
    size_t k, i, left = 0;
    const db_file_tensor **taken;
    if (db__params_find_in(params, st, what, kind->names, NULL) != DB_OK) return ctx->result;
    taken = params->source->tensor;
    for (k = 0; k < db_safetensors_count(st) && db_safetensors_count(st) > params->n; k++) {
        const db_file_tensor *f = db_safetensors_at(st, k);
        for (i = 0; i < params->n && taken[i] != f; i++) {}
        if (i < params->n || strstr(f->name, "embeddings.position_ids"))
            continue; /* the latter a constant that old transformers saved: 0, 1, 2 ... */
        db__log_some(ctx, ++left, "%s: the configuration does not know the tensor %s, ignored",
                     what, f->name);
    }
    return DB_OK;
}

/* From DIRECTORY/config.json and DIRECTORY/WEIGHTS*.safetensors. */
static void *db__network_load(db_ctx *ctx, const db__network *kind, const char *directory)
{
    char path[DB__PATH];
    void *config = db__alloc(ctx, 1, kind->config_bytes), *network = NULL;
    db_safetensors *st = NULL;
    if (config && db__join(ctx, path, directory, "config.json") &&
        db__config_load(ctx, kind, path, config) == DB_OK &&
        db_weights_open(ctx, directory, kind->weights, &st) == DB_OK) {
        network = db__network_declare(ctx, kind, config);
        if (network) db__network_find_in(kind, (db_param_table *)network, st);
    }
    db_safetensors_close(st);
    db__free(ctx, config);
    if (ctx->result == DB_OK) return network;
    db__network_free(network);
    return NULL;
}

/* ---- LoRA ---------------------------------------------------------------------------------------
   Hu et al., 2021. The factors are declared as all parameters are, by a forward pass; see
   db__low_rank.

   Easy to get wrong
   - B begins as zero and A does not: the first output is the network's own and B has a gradient.
   - Without a word in the file's metadata, alpha is the rank: a factor of 1. */

enum { DB__FOR_LORA = 70 };

void db_lora_remove(db_param_table *network)
{
    if (!network->lora) return;
    network->lora_changes++;
    db__params_free(&network->lora->params);
    db__free(network->ctx, network->lora);
    network->lora = NULL;
}

/* Puts a LoRA beside the targets' layers, without room for its factors yet; NULL with the error
   set. */
static db_lora *db__lora_declare(const db__network *kind, db_param_table *network, size_t rank,
                                 float alpha)
{
    db_ctx *ctx = network->ctx;
    db__net n;
    memset(&n, 0, sizeof n);
    if (network->lora)
        db__fail(ctx, DB_ERROR_ARGUMENT, "the network has a LoRA already: merge it first");
    if (!rank || rank > 1 << 16)
        db__fail(ctx, DB_ERROR_ARGUMENT, "a LoRA of rank %zu: it must be at least 1, at most 65536",
                 rank);
    if (ctx->result != DB_OK ||
        !(network->lora = (db_lora *)db__alloc(ctx, 1, sizeof *network->lora)))
        return NULL;
    network->lora_changes++;
    network->lora->params.ctx = ctx, network->lora->rank = rank, network->lora->alpha = alpha;
    n.params = network, n.declaring = 1;
    if (db_tape_create(ctx, &n.tape) == DB_OK)
        kind->record(&n, (const char *)network + kind->config);
    db_tape_destroy(n.tape);
    if (ctx->result == DB_OK && !network->lora->params.n)
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "the network has no layers that a LoRA goes beside; a T5 encoder stays as it is");
    if (ctx->result != DB_OK) db_lora_remove(network);
    return network->lora;
}

static db_result db__lora_add(const db__network *kind, db_param_table *network, size_t rank,
                              float alpha, uint64_t seed)
{
    db_lora *lora = db__lora_declare(kind, network, rank, alpha);
    size_t k, i;
    db_rng rng;
    if (!lora) return network->ctx->result;
    if (db__params_allocate(&lora->params) != DB_OK) {
        db_lora_remove(network);
        return network->ctx->result;
    }
    rng.seed = seed, rng.purpose = DB__FOR_LORA;
    for (k = 0; k < lora->params.n; k += 2) { /* A, B, A, B ... */
        db_param *a = &lora->params.item[k];
        rng.step = (uint32_t)k;
        db_random_normal(&rng, a->count, a->data);
        for (i = 0; i < a->count; i++) a->data[i] /= (float)rank;
    }
    return network->ctx->result;
}

db_result db_lora_merge(db_param_table *network)
{
    db_ctx *ctx = network->ctx;
    db_lora *lora = network->lora;
    size_t k, r, i, o;
    float *row, scale;
    if (!lora || db_params_fill(network) != DB_OK) return ctx->result;
    scale = lora->alpha / (float)lora->rank;
    for (k = 0; k + 1 < lora->params.n; k += 2) {
        const db_param *a = &lora->params.item[k], *b = a + 1;
        const db_param *w;
        char name[DB__NAME];
        snprintf(name, sizeof name, "%.*sweight", (int)(strlen(a->name) - strlen("lora_A.weight")),
                 a->name);
        w = db_params_find(network, name);
        for (o = 0; o < b->dim[0]; o++) {
            row = w->data + o * a->dim[1];
            for (r = 0; r < lora->rank; r++)
                for (i = 0; i < a->dim[1]; i++)
                    row[i] += scale * b->data[o * lora->rank + r] * a->data[r * a->dim[1] + i];
        }
    }
    db_lora_remove(network);
    return DB_OK;
}

/* A factor's names in files; `config` is the network's, "unet" or "text_encoder". 1: what
   diffusers' scripts write; 2: peft's own; 3, 4: the same without CLIP's "text_model.", which
   transformers 5 leaves away. */
static int db__lora_names(const void *config, const char *name, int alternative, char *out)
{
    static const char *const endings[2][2] = {{"down", "up"}, {"lora_A", "lora_B"}};
    const char *network = (const char *)config, *end = strstr(name, ".lora_"), *layer, *style;
    int second, length, shorter = alternative > 2;
    if (!end || alternative > 4 || (shorter && strncmp(name, "text_model.", 11))) return 0;
    length = (int)(end - name), second = end[6] == 'B';
    for (layer = end; layer > name && layer[-1] != '.';) layer--;
    style = strstr(name, "self_attn.") ? "lora_linear_layer."
            : *layer == 'a'            ? NULL
                                       : "lora."; /* add_k_proj: peft's */
    if (shorter) name += 11, length -= 11;
    if (alternative % 2 && style)
        return snprintf(out, DB__NAME, "%s.%.*s.%s%s.weight", network, length, name, style,
                        endings[0][second]) < DB__NAME;
    return snprintf(out, DB__NAME, "%s.%.*s.%s.weight", network, length, name, endings[1][second]) <
           DB__NAME;
}

/* Whether the metadata asks for more than one factor alpha / rank. */
static int db__lora_refused(const db_json *j, const char *network)
{
    char name[64];
    const db_json *pattern;
    snprintf(name, sizeof name, "%s.alpha_pattern", network);
    pattern = db_json_get(j, name);
    snprintf(name, sizeof name, "%s.use_rslora", network);
    return (pattern && pattern->count) || db_json_bool(j, name, 0);
}

/* Reads what an open file has for a network. Returns how many of its tensors that were. */
static size_t db__lora_read(const db__network *kind, db_param_table *table, const char *network,
                            db_safetensors *st)
{
    db_ctx *ctx = table->ctx;
    const char *what = st->shard[0].name,
               *text = db_safetensors_metadata(st, "lora_adapter_metadata");
    const db_json *j = NULL;
    const db_file_tensor *first = NULL;
    size_t k, n = 0, rank, prefix = strlen(network);
    char key[64];
    double alpha;
    for (k = 0; k < db_safetensors_count(st); k++) {
        const db_file_tensor *f = db_safetensors_at(st, k);
        if (strncmp(f->name, network, prefix) || f->name[prefix] != '.') continue;
        if (!first && (strstr(f->name, ".lora_A.weight") || strstr(f->name, ".down.weight")))
            first = f;
        n++;
    }
    if (!n || ctx->result != DB_OK) return 0;
    if (!first || first->n_dims != 2) {
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: the tensors of \"%s\" are no LoRA of linear layers", what, network);
        return 0;
    }
    rank = first->dim[0], alpha = (double)rank;
    if (text && !(j = db_json_parse(ctx, what, text, strlen(text)))) return 0;
    if (j && j->type != DB_JSON_OBJECT)
        db__fail(ctx, DB_ERROR_FORMAT, "%s: \"lora_adapter_metadata\" is no object", what);
    if (j && db__lora_refused(j, network))
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: alpha_pattern and use_rslora, which give layers factors of their own, are "
                 "not supported",
                 what);
    if (j) {
        snprintf(key, sizeof key, "%s.lora_alpha", network);
        alpha = db_json_number(j, key, alpha);
    }
    db_json_free(j);
    if (ctx->result == DB_OK && db__lora_declare(kind, table, rank, (float)alpha)) {
        db__params_find_in(&table->lora->params, st, what, db__lora_names, network);
        db_params_fill(&table->lora->params);
    }
    if (ctx->result == DB_OK && table->lora->params.n != n)
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s has %zu tensors for the \"%s\", a LoRA of the attention's projections has "
                 "%zu; others are not supported",
                 what, n, network, table->lora->params.n);
    return n;
}

/* Adds to the metadata what peft has to know of a network's LoRA. Returns the text's new length. */
static size_t db__lora_metadata(const db_lora *lora, const char *network, char *text, size_t length,
                                size_t size)
{
    const char *targets =
        !strcmp(network, "unet")
            ? "\"to_q\", \"to_k\", \"to_v\", \"to_out.0\", \"add_k_proj\", \"add_v_proj\""
            : "\"q_proj\", \"k_proj\", \"v_proj\", \"out_proj\"";
    char point[16], local[32], alpha[32];
    db__locale_point(point);
    snprintf(local, sizeof local, "%.9g", (double)lora->alpha);
    db__swap_point(alpha, sizeof alpha, local, point, ".");
    return length +
           (size_t)snprintf(text + length, size - length,
                            "%s\"%s.r\": %zu, \"%s.lora_alpha\": %s, \"%s.target_modules\": "
                            "[%s], \"%s.init_lora_weights\": \"gaussian\"",
                            length > 1 ? ", " : "", network, lora->rank, network,
                            alpha, network, targets, network);
}

static db_result db__text_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_text_config *c = (const db_text_config *)config;
    int clip = c->kind == DB_TEXT_CLIP;
    if (!c->vocab_size || !c->d_model || !c->d_kv || !c->d_ff || !c->num_layers || !c->num_heads ||
        c->num_layers > DB__MOST_LAYERS ||
        (clip ? !c->max_position_embeddings : c->relative_attention_num_buckets < 4))
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: a size of the text encoder is 0, or it has more than %d layers", what,
                        DB__MOST_LAYERS);
    if (clip && c->d_model % c->num_heads)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu heads do not divide \"hidden_size\" %zu",
                        what, c->num_heads, c->d_model);
    if (!clip && c->relative_attention_max_distance <= c->relative_attention_num_buckets / 4)
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: relative_attention_max_distance must be more than a quarter of "
                        "relative_attention_num_buckets",
                        what);
    return ctx->result;
}

/* ---- T5 -----------------------------------------------------------------------------------------
   Raffel et al., 2020; the encoder of T5 v1.1, which Imagen (section 2.1) and DeepFloyd IF keep
   frozen.

   Easy to get wrong
   - No 1/sqrt(d) in the attention, no biases, RMS instead of layer normalisation.
   - "gated-gelu" is the tanh approximation.
   - One table of relative positions, in block 0, serves all blocks. */

static void db__t5_config(db_ctx *ctx, const db_json *j, const char *path, db_text_config *c)
{
    const char *ff = db_json_string(j, "feed_forward_proj", "relu");
    c->kind = DB_TEXT_T5;
    c->vocab_size = db__config_size(ctx, j, "vocab_size", path);
    c->d_model = db__config_size(ctx, j, "d_model", path);
    c->d_kv = db__config_size(ctx, j, "d_kv", path);
    c->d_ff = db__config_size(ctx, j, "d_ff", path);
    c->num_layers = db__config_size(ctx, j, "num_layers", path);
    c->num_heads = db__config_size(ctx, j, "num_heads", path);
    c->relative_attention_num_buckets =
        (size_t)DB__MAX(4, db_json_int(j, "relative_attention_num_buckets", 32));
    c->relative_attention_max_distance =
        (size_t)DB__MAX(4, db_json_int(j, "relative_attention_max_distance", 128));
    c->layer_norm_epsilon = (float)db_json_number(j, "layer_norm_epsilon", 1e-6);
    c->gated = !strncmp(ff, "gated-", 6);
    c->act = !strcmp(ff, "gated-gelu") ? DB_ACT_GELU_TANH
                                       : db__activation_named(ctx, ff + (c->gated ? 6 : 0), path);
}

/* Pre-norm attention and its residual. x [B,T,D] */
static db_tensor db__t5_attention(db__net *n, const db_text_config *c, db_tensor x, db_tensor bias,
                                  db_tensor mask)
{
    size_t here = db__enter(n, "layer.0"), inner = c->num_heads * c->d_kv, there;
    db_tensor h = db__rms_norm_layer(n, "layer_norm", x, c->layer_norm_epsilon), q, k, v,
              o; /* [B,T,D] */
    there = db__enter(n, "SelfAttention");
    q = db__linear_layer(n, "q", h, inner, 0, db_none); /* [B,T,heads*d_kv] */
    k = db__linear_layer(n, "k", h, inner, 0, db_none);
    v = db__linear_layer(n, "v", h, inner, 0, db_none);
    o = db_attention(n->tape, q, k, v, bias, mask, c->num_heads, 1.0f, 0);
    o = db__linear_layer(n, "o", o, c->d_model, 0, x); /* [B,T,D] */
    db__leave(n, there);
    db__leave(n, here);
    return o;
}

/* Pre-norm feed-forward network and its residual. */
static db_tensor db__t5_feed_forward(db__net *n, const db_text_config *c, db_tensor x)
{
    size_t here = db__enter(n, "layer.1"), there;
    db_tensor h = db__rms_norm_layer(n, "layer_norm", x, c->layer_norm_epsilon), y; /* [B,T,D] */
    there = db__enter(n, "DenseReluDense");
    if (c->gated) {
        db_tensor gate = db_activate(n->tape, db__linear_layer(n, "wi_0", h, c->d_ff, 0, db_none),
                                     c->act); /* [B,T,F] */
        y = db_multiply(n->tape, gate, db__linear_layer(n, "wi_1", h, c->d_ff, 0, db_none));
    } else {
        y = db_activate(n->tape, db__linear_layer(n, "wi", h, c->d_ff, 0, db_none), c->act);
    }
    y = db__linear_layer(n, "wo", y, c->d_model, 0, x); /* [B,T,D] */
    db__leave(n, there);
    db__leave(n, here);
    return y;
}

static db_tensor db__t5_record(db__net *n, const db_text_config *c, db_tensor ids, db_tensor mask)
{
    db_tensor x = db_embedding(n->tape, ids,
                               db__weight(n, "shared.weight", c->vocab_size, c->d_model, 0, 0)),
              bias; /* [B,T,D] */
    size_t l;
    bias = db__weight(n, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                      c->relative_attention_num_buckets, c->num_heads, 0, 0);
    bias = db__position_bias(n->tape, bias, ids.dim[1],
                             c->relative_attention_max_distance); /* [heads,T,T] */
    for (l = 0; l < c->num_layers; l++) {
        size_t here = db__enter(n, "encoder.block.%zu", l);
        x = db__t5_attention(n, c, x, bias, mask);
        x = db__t5_feed_forward(n, c, x);
        db__leave(n, here);
    }
    return db__rms_norm_layer(n, "encoder.final_layer_norm", x, c->layer_norm_epsilon);
}

/* ---- CLIP ---------------------------------------------------------------------------------------
   Radford et al., 2021; the encoder that Stable Diffusion 1.x (ViT-L/14's) and 2.x (OpenCLIP's)
   read.

   Easy to get wrong
   - Every token sees itself and those before it only, the end marker and the padding after it
     included.
   - "quick_gelu" is x sigmoid(1.702 x); OpenCLIP has "gelu".
   - Stable Diffusion takes the last hidden state *after* the final normalisation. */

static void db__clip_text_config(db_ctx *ctx, const db_json *j, const char *path, db_text_config *c)
{
    c->kind = DB_TEXT_CLIP;
    c->vocab_size = db__config_size_or(ctx, j, "vocab_size", 49408, path);
    c->d_model = db__config_size_or(ctx, j, "hidden_size", 512, path);
    c->d_ff = db__config_size_or(ctx, j, "intermediate_size", 2048, path);
    c->num_layers = db__config_size_or(ctx, j, "num_hidden_layers", 12, path);
    c->num_heads = db__config_size_or(ctx, j, "num_attention_heads", 8, path);
    c->max_position_embeddings = (size_t)DB__MAX(1, db_json_int(j, "max_position_embeddings", 77));
    c->layer_norm_epsilon = (float)db_json_number(j, "layer_norm_eps", 1e-5);
    c->act = db__activation_named(ctx, db_json_string(j, "hidden_act", "quick_gelu"), path);
    c->d_kv = c->d_model / c->num_heads;
}

/* What the weights of a pre-norm transformer layer are called; CLIP's and ViT's differ. */
typedef struct db__layer_names {
    const char *norm1, *q, *k, *v, *out, *norm2, *fc1, *fc2;
} db__layer_names;

static const db__layer_names db__clip_names = {"layer_norm1", "self_attn.q_proj",
                                               "self_attn.k_proj", "self_attn.v_proj",
                                               "self_attn.out_proj", "layer_norm2", "mlp.fc1",
                                               "mlp.fc2"};

/* x += attention(norm(x)); x += feed-forward(norm(x)). x [B,T,D] */
static db_tensor db__transformer_layer(db__net *n, const db__layer_names *name, db_tensor x,
                                       size_t heads, size_t d_ff, float eps,
                                       db_activation act, int qkv_bias, db_tensor mask, int causal)
{
    size_t D = x.dim[2];
    db_tensor h, q, k, v;
    if (n->tape->checkpoint_blocks) db_checkpoint_begin(n->tape);
    h = db__layer_norm_layer(n, name->norm1, x, eps); /* [B,T,D] */
    q = db__linear_layer(n, name->q, h, D, qkv_bias, db_none);
    k = db__linear_layer(n, name->k, h, D, qkv_bias, db_none);
    v = db__linear_layer(n, name->v, h, D, qkv_bias, db_none);
    h = db_attention(n->tape, q, k, v, db_none, mask, heads, 1.0f / sqrtf((float)(D / heads)),
                     causal);
    x = db__linear_layer(n, name->out, h, D, 1, x);
    h = db__layer_norm_layer(n, name->norm2, x, eps);
    h = db__linear_layer(n, name->fc1, h, d_ff, 1, db_none); /* [B,T,F] */
    h = db_activate(n->tape, h, act);
    x = db__linear_layer(n, name->fc2, h, D, 1, x);
    if (n->tape->checkpoint_blocks) db_checkpoint_end(n->tape);
    return x;
}

static db_tensor db__clip_text_record(db__net *n, const db_text_config *c, db_tensor ids,
                                      db_tensor mask)
{
    db_tape *t = n->tape;
    size_t root = db__enter(n, "text_model"), here, l;
    db_tensor table = db__weight(n, "embeddings.token_embedding.weight", c->vocab_size, c->d_model,
                                 0, 0),
              x;
    db_tensor places = db__weight(n, "embeddings.position_embedding.weight",
                                  c->max_position_embeddings, c->d_model, 0, 0);
    if (ids.id >= 0 && ids.dim[1] > places.dim[0])
        return db__shape_fail(t, "CLIP: more tokens than positions", ids, places);
    places.dim[0] = ids.dim[1];                                         /* the first T rows */
    x = db_add_rows(t, db_embedding(t, ids, table), places);            /* [B,T,D] */
    for (l = 0; l < c->num_layers; l++) {
        here = db__enter(n, "encoder.layers.%zu", l);
        x = db__transformer_layer(n, &db__clip_names, x, c->num_heads, c->d_ff,
                                  c->layer_norm_epsilon, c->act, 1, mask, 1);
        db__leave(n, here);
    }
    x = db__layer_norm_layer(n, "final_layer_norm", x, c->layer_norm_epsilon);
    db__leave(n, root);
    return x;
}

/* transformers 5 leaves the prefix away. */
static int db__clip_text_names(const void *config, const char *name, int alternative, char *out)
{
    (void)config;
    return alternative == 1 && !strncmp(name, "text_model.", 11) &&
           snprintf(out, DB__NAME, "%s", name + 11) < DB__NAME;
}

/* ---- either ---------------------------------------------------------------------------------- */

static db_result db__text_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    const char *type = db_json_string(j, "model_type", "t5");
    if (!strcmp(type, "t5")) db__t5_config(ctx, j, path, (db_text_config *)config);
    else if (!strcmp(type, "clip_text_model"))
        db__clip_text_config(ctx, j, path, (db_text_config *)config);
    else
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: the model_type \"%s\" is not supported; t5 and clip_text_model are", path,
                 type);
    return ctx->result;
}

static db_tensor db__text_record(db__net *n, const db_text_config *c, db_tensor ids, db_tensor mask)
{
    return c->kind == DB_TEXT_CLIP ? db__clip_text_record(n, c, ids, mask)
                                   : db__t5_record(n, c, ids, mask);
}

static void db__text_declare(db__net *n, const void *config)
{
    size_t dim[2] = {1, 1};
    db__text_record(n, (const db_text_config *)config, db_input(n->tape, DB_I32, 2, dim), db_none);
}

static const db__network db__text_network = {
    sizeof(db_text_encoder), offsetof(db_text_encoder, config),
    sizeof(db_text_config),  "model",
    db__text_parse,          db__text_check,
    db__text_declare,        db__clip_text_names};

db_tensor db_text_forward(db_tape *t, db_text_encoder *e, db_tensor ids, db_tensor mask)
{
    db__net n;
    memset(&n, 0, sizeof n);
    n.tape = t, n.params = &e->params;
    return db__text_record(&n, &e->config, ids, mask);
}

db_result db_text_config_load(db_ctx *ctx, const char *path, db_text_config *out)
{
    return db__config_load(ctx, &db__text_network, path, out);
}

db_result db_text_encoder_add_lora(db_text_encoder *e, size_t rank, float alpha, uint64_t seed)
{
    return db__lora_add(&db__text_network, &e->params, rank, alpha, seed);
}

db_result db_text_encoder_create(db_ctx *ctx, const db_text_config *config, db_text_encoder **out)
{
    *out = (db_text_encoder *)db__network_create(ctx, &db__text_network, config,
                                                 "db_text_encoder_create");
    return ctx->result;
}

db_result db_text_encoder_load(db_ctx *ctx, const char *directory, db_text_encoder **out)
{
    *out = (db_text_encoder *)db__network_load(ctx, &db__text_network, directory);
    return ctx->result;
}

void db_text_encoder_free(db_text_encoder *e) { db__network_free(e); }

/* ==== [DB-08] The U-Net ==========================================================================

   diffusers' UNet2DConditionModel, built from config.json, with the blocks of two families:

     Imagen's and DeepFloyd IF's (Saharia et al., 2022, appendix B): ResnetDownsampleBlock2D,
     SimpleCrossAttnDownBlock2D;
     Stable Diffusion's (Rombach et al., 2022): DownBlock2D, CrossAttnDownBlock2D.

     x -> conv_in -> down blocks -> mid block -> up blocks -> norm, activation -> conv_out
     (each layer of the way up takes one output of the way down)

   IF: the time embedding scales and shifts the second normalisation of every ResNet, the pooled
   text is added to it, and attention reads the text as further keys and values beside the pixels'
   own. Stable Diffusion: the time embedding is added between the two convolutions; transformers
   attend to the pixels, then to the text.

   Easy to get wrong
   - `attention_head_dim` is the width of a head in IF's blocks and the number of heads in Stable
     Diffusion's. Where it is a list, IF's is not reversed on the way up, though every other list
     is: so diffusers has it.
   - cross_attention_norm "group_norm" normalises the *text*, over groups of channels and all
     tokens.
   - IF's down- and upsampling happens inside a ResNet, between the activation and the first
     convolution, on the residual path as well; Stable Diffusion's is a convolution of stride 2,
     and one after doubling the pixels.
   - IF's keys and values are [text, pixels], in that order; there is no mask over the text.
   - The pooled text is of the encoder's own states, before encoder_hid_proj.
   - The transformers' outer norm has eps 1e-6, their inner ones 1e-5, whatever norm_eps says.
   - An odd size is rounded up on Stable Diffusion's way down; on the way up the skip says what it
     was. IF's blocks take even sizes alone. */

/* What the ResNets of one network have in common. */
typedef struct db__resnets {
    size_t groups;
    float eps;
    db_activation act;
    int scale_shift; /* the embedding is norm2's scale and shift, or added before norm2 */
} db__resnets;

/* One ResNet: norm, act, (resample,) conv, embedding and norm, act, conv. x [B,H,W,C]; emb [B,E]
   already activated, or none; resample -1 halves, +1 doubles H and W. */
static db_tensor db__resnet(db__net *n, const db__resnets *c, const char *name, db_tensor x,
                            db_tensor emb, size_t OC, float scale_factor, int resample)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "%s", name);
    db_tensor h, e = db_none;
    if (t->checkpoint_blocks) db_checkpoint_begin(t);
    h = db__group_norm_layer(n, "norm1", x, db_none, c->groups, c->eps, c->act); /* [B,H,W,C] */
    if (resample < 0) x = db_avg_pool2(t, x), h = db_avg_pool2(t, h);
    if (resample > 0)
        x = db_upsample2(t, x, 2 * x.dim[1], 2 * x.dim[2]),
        h = db_upsample2(t, h, 2 * h.dim[1], 2 * h.dim[2]);
    h = db__conv_layer(n, "conv1", h, OC, 3, db_none); /* [B,H',W',OC] */
    if (emb.id >= 0)
        e = db__linear_layer(n, "time_emb_proj", emb, c->scale_shift ? 2 * OC : OC, 1,
                             db_none); /* [B,2OC] or [B,OC] */
    if (emb.id >= 0 && !c->scale_shift) h = db_add_each(t, h, e), e = db_none;
    h = db__group_norm_layer(n, "norm2", h, e, c->groups, c->eps, c->act);
    if (x.dim[3] != OC) x = db__conv_layer(n, "conv_shortcut", x, OC, 1, db_none);
    if (scale_factor == 1.0f) {
        h = db__conv_layer(n, "conv2", h, OC, 3, x); /* x + conv2(h) */
    } else {
        h = db__conv_layer(n, "conv2", h, OC, 3, db_none);
        h = db_weighted_sum(t, 1.0f / scale_factor, x, 1.0f / scale_factor, h);
    }
    if (t->checkpoint_blocks) db_checkpoint_end(t);
    db__leave(n, here);
    return h;
}

/* ---- Stable Diffusion's attention ------------------------------------------------------------ */

/* Attention of x [B,T,C] over source [B,S,X] and its residual: [B,T,C] */
static db_tensor db__attention_layer(db__net *n, const char *name, db_tensor x, db_tensor source,
                                     size_t heads, int qkv_bias, db_tensor residual)
{
    size_t here = db__enter(n, "%s", name), C = x.dim[2];
    db_tensor q = db__linear_layer(n, "to_q", x, C, qkv_bias, db_none), k, v, y; /* [B,T,C] */
    k = db__linear_layer(n, "to_k", source, C, qkv_bias, db_none);               /* [B,S,C] */
    v = db__linear_layer(n, "to_v", source, C, qkv_bias, db_none);
    y = db_attention(n->tape, q, k, v, db_none, db_none, heads, 1.0f / sqrtf((float)(C / heads)),
                     0);
    y = db__linear_layer(n, "to_out.0", y, C, 1, residual);
    db__leave(n, here);
    return y;
}

/* Pixels attend to each other, then to the text; then a feed-forward network with a gate (GEGLU). x
   [B,P,C] */
static db_tensor db__transformer_block(db__net *n, db_tensor x, db_tensor text, size_t heads,
                                       int only_cross)
{
    db_tape *t = n->tape;
    size_t C = x.dim[2], here;
    db_tensor h = db__layer_norm_layer(n, "norm1", x, 1e-5f); /* [B,P,C] */
    x = db__attention_layer(n, "attn1", h, only_cross ? text : h, heads, 0, x);
    h = db__layer_norm_layer(n, "norm2", x, 1e-5f);
    x = db__attention_layer(n, "attn2", h, text, heads, 0, x);
    h = db__layer_norm_layer(n, "norm3", x, 1e-5f);
    here = db__enter(n, "ff.net");
    h = db__linear_layer(n, "0.proj", h, 8 * C, 1, db_none); /* [B,P,8C]: values, gates */
    h = db_gate(t, h, DB_ACT_GELU);                          /* [B,P,4C] */
    x = db__linear_layer(n, "2", h, C, 1, x);                /* [B,P,C] */
    db__leave(n, here);
    return x;
}

/* Transformer2DModel. x [B,H,W,C], text [B,T,X] */
static db_tensor db__transformer(db__net *n, const db_unet_config *c, const char *name, db_tensor x,
                                 db_tensor text, size_t heads, size_t layers, int only_cross)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "%s", name), B = x.dim[0], C = x.dim[3], l;
    db_tensor h;
    if (t->checkpoint_blocks) db_checkpoint_begin(t);
    h = db__group_norm_layer(n, "norm", x, db_none, c->norm_num_groups, 1e-6f,
                             DB_ACT_NONE); /* [B,H,W,C] */
    h = c->use_linear_projection ? db__linear_layer(n, "proj_in", h, C, 1, db_none)
                                 : db__conv_layer(n, "proj_in", h, C, 1, db_none);
    h = db__shape3(t, h, B, x.dim[1] * x.dim[2], C); /* [B,P,C] */
    for (l = 0; l < layers; l++) {
        size_t there = db__enter(n, "transformer_blocks.%zu", l);
        h = db__transformer_block(n, h, text, heads, only_cross);
        db__leave(n, there);
    }
    h = db__shape4(t, h, B, x.dim[1], x.dim[2], C);
    h = c->use_linear_projection ? db__linear_layer(n, "proj_out", h, C, 1, x)
                                 : db__conv_layer(n, "proj_out", h, C, 1, x);
    if (t->checkpoint_blocks) db_checkpoint_end(t);
    db__leave(n, here);
    return h;
}

/* ---- IF's attention and embeddings ----------------------------------------------------------- */

/* Attention over the text and the pixels, with its residual. x [B,H,W,C], text [B,T,X] */
static db_tensor db__simple_cross_attention(db__net *n, const db_unet_config *c, const char *name,
                                            db_tensor x, db_tensor text, size_t head_dim,
                                            int only_cross)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "%s", name), C = x.dim[3], B = x.dim[0], HW = x.dim[1] * x.dim[2],
           heads = DB__MAX(1, C / head_dim), inner = heads * head_dim;
    db_tensor pixels = db__shape3(t, x, B, HW, C), h, q, k, v, y;
    if (t->checkpoint_blocks) db_checkpoint_begin(t);
    if (c->cross_attention_norm)
        text = db__group_norm_layer(n, "norm_cross", text, db_none, 32, 1e-5f,
                                    DB_ACT_NONE); /* [B,T,X] */
    h = db__group_norm_layer(n, "group_norm", pixels, db_none, c->norm_num_groups, 1e-5f,
                             DB_ACT_NONE); /* [B,HW,C] */
    q = db__linear_layer(n, "to_q", h, inner, 1, db_none);
    k = db__linear_layer(n, "add_k_proj", text, inner, 1, db_none); /* [B,T,C] */
    v = db__linear_layer(n, "add_v_proj", text, inner, 1, db_none);
    if (!only_cross) {
        k = db_concat(t, k, db__linear_layer(n, "to_k", h, inner, 1, db_none), 1); /* [B,T+HW,C] */
        v = db_concat(t, v, db__linear_layer(n, "to_v", h, inner, 1, db_none), 1);
    }
    y = db_attention(t, q, k, v, db_none, db_none, heads, 1.0f / sqrtf((float)head_dim),
                     0); /* [B,HW,C] */
    y = db__linear_layer(n, "to_out.0", y, C, 1, pixels);
    if (t->checkpoint_blocks) db_checkpoint_end(t);
    db__leave(n, here);
    return db__shape4(t, y, B, x.dim[1], x.dim[2], C);
}

/* A number as a vector: sines and cosines, linear, act, linear. [B] -> [B,E] */
static db_tensor db__number_embedding(db__net *n, const db_unet_config *c, const char *name,
                                      db_tensor number)
{
    size_t here = db__enter(n, "%s", name);
    db_tensor x =
        db_sinusoid(n->tape, number, c->block_out_channels[0], c->flip_sin_to_cos, c->freq_shift);
    x = db_activate(n->tape, db__linear_layer(n, "linear_1", x, c->time_embedding_dim, 1, db_none),
                    c->act);
    x = db__linear_layer(n, "linear_2", x, c->time_embedding_dim, 1, db_none);
    db__leave(n, here);
    return x;
}

/* The text in one vector: attention of the mean token over all tokens. [B,T,D] -> [B,E] */
static db_tensor db__pooled_text(db__net *n, db_tensor text, size_t E, size_t heads)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "add_embedding"), there, D = text.dim[2];
    db_tensor h = db__layer_norm_layer(n, "norm1", text, 1e-5f), mean, q, k, v, y; /* [B,T,D] */
    there = db__enter(n, "pool");
    mean = db_add_rows(t, db_mean_tokens(t, h),
                       db__weight(n, "positional_embedding", 1, D, 0, 0)); /* [B,1,D] */
    h = db_concat(t, mean, h, 1);                                          /* [B,1+T,D] */
    q = db__linear_layer(n, "q_proj", mean, D, 1, db_none);
    k = db__linear_layer(n, "k_proj", h, D, 1, db_none);
    v = db__linear_layer(n, "v_proj", h, D, 1, db_none);
    y = db_attention(t, q, k, v, db_none, db_none, heads, 1.0f / sqrtf((float)(D / heads)),
                     0); /* [B,1,D] */
    db__leave(n, there);
    y = db__linear_layer(n, "proj", db__shape2(t, y, text.dim[0], D), E, 1, db_none); /* [B,E] */
    y = db__layer_norm_layer(n, "norm2", y, 1e-5f);
    db__leave(n, here);
    return y;
}

/* Layer l of a level: a ResNet, then attention where the block has it. `level` counts from the
   largest image; `nth` from the network's input, on the way up from the middle. */
static db_tensor db__unet_layer(db__net *n, const db_unet_config *c, const db__resnets *r,
                                db_block block, size_t level, size_t nth, size_t l, db_tensor h,
                                db_tensor emb, db_tensor text)
{
    size_t OC = c->block_out_channels[level];
    int only_cross = c->only_cross_attention[level];
    char name[32];
    snprintf(name, sizeof name, "resnets.%zu", l);
    h = db__resnet(n, r, name, h, emb, OC, c->resnet_out_scale_factor, 0); /* [B,H,W,OC] */
    snprintf(name, sizeof name, "attentions.%zu", l);
    if (block == DB_BLOCK_CROSS_ATTN)
        h = db__transformer(n, c, name, h, text, c->attention_head_dim[level],
                            c->transformer_layers_per_block[level], only_cross);
    if (block == DB_BLOCK_SIMPLE_CROSS_ATTN)
        h = db__simple_cross_attention(n, c, name, h, text, c->attention_head_dim[nth], only_cross);
    return h;
}

static int db__block_resamples_in_resnet(db_block block)
{
    return block == DB_BLOCK_RESNET || block == DB_BLOCK_SIMPLE_CROSS_ATTN;
}

static db_tensor db__unet_record(db__net *n, const db_unet_config *c, db_tensor x,
                                 db_tensor timestep, db_tensor text, db_tensor class_labels,
                                 db_unet_features *features)
{
    db_tape *t = n->tape;
    size_t ch0 = c->block_out_channels[0], last = c->n_levels - 1, level, l, here, n_skips = 0;
    float scale = c->resnet_out_scale_factor;
    db_tensor skip[DB_MAX_LEVELS * 16], emb, h;
    db__resnets r;
    if (t->ctx->result != DB_OK) return db_none;
    r.groups = c->norm_num_groups, r.eps = c->norm_eps, r.act = c->act,
    r.scale_shift = c->resnet_time_scale_shift;
    if (c->class_embed_timestep && class_labels.id < 0) {
        db__fail(t->ctx, DB_ERROR_MISSING,
                 "the U-Net wants class labels, the noise level of a super-resolver");
        return db_none;
    }
    x = db_cast(t, x, t->compute);
    text = db_cast(t, text, t->compute);

    /* time, noise level and pooled text: one vector a sample, [B,E] */
    emb = db__number_embedding(n, c, "time_embedding", timestep);
    if (c->class_embed_timestep)
        emb = db_weighted_sum(t, 1, emb, 1,
                              db__number_embedding(n, c, "class_embedding", class_labels));
    if (c->addition_embed_text)
        emb = db_weighted_sum(
            t, 1, emb, 1,
            db__pooled_text(n, text, c->time_embedding_dim, c->addition_embed_type_num_heads));
    emb = db_activate(t, emb, c->time_embedding_act);
    if (!c->resnet_skip_time_act)
        emb = db_activate(t, emb, c->act); /* every ResNet begins with it */
    if (c->encoder_hid_dim)
        text = db__linear_layer(n, "encoder_hid_proj", text, c->cross_attention_dim, 1,
                                db_none); /* [B,T,X] */

    /* down */
    h = skip[n_skips++] = db__conv_layer(n, "conv_in", x, ch0, 3, db_none); /* [B,H,W,ch0] */
    for (level = 0; level < c->n_levels; level++) {
        db_block block = c->down_block_types[level];
        size_t OC = c->block_out_channels[level];
        here = db__enter(n, "down_blocks.%zu", level);
        for (l = 0; l < c->layers_per_block[level]; l++)
            h = skip[n_skips++] =
                db__unet_layer(n, c, &r, block, level, level, l, h, emb, text); /* [B,H,W,OC] */
        if (level < last) { /* [B,H/2,W/2,OC] */
            if (db__block_resamples_in_resnet(block))
                h = db__resnet(n, &r, "downsamplers.0", h, emb, OC, scale, -1);
            else h = db__conv_stride_layer(n, "downsamplers.0.conv", h, OC, 3, db_none, 2, 1, 1);
            skip[n_skips++] = h;
        }
        db__leave(n, here);
    }

    /* middle */
    here = db__enter(n, "mid_block");
    h = db__resnet(n, &r, "resnets.0", h, emb, c->block_out_channels[last],
                   c->mid_block_scale_factor, 0);
    if (c->mid_block_type == DB_BLOCK_CROSS_ATTN)
        h = db__transformer(n, c, "attentions.0", h, text, c->attention_head_dim[last],
                            c->transformer_layers_per_block[last], 0);
    if (c->mid_block_type == DB_BLOCK_SIMPLE_CROSS_ATTN)
        h = db__simple_cross_attention(n, c, "attentions.0", h, text, c->attention_head_dim[last],
                                       c->mid_block_only_cross_attention);
    if (c->mid_block_type != DB_BLOCK_PLAIN)
        h = db__resnet(n, &r, "resnets.1", h, emb, c->block_out_channels[last],
                       c->mid_block_scale_factor, 0);
    db__leave(n, here);

    /* up: one layer more than on the way down, each with one skip */
    for (level = 0; level < c->n_levels; level++) {
        db_block block = c->up_block_types[level];
        size_t from = last - level, OC = c->block_out_channels[from];
        here = db__enter(n, "up_blocks.%zu", level);
        for (l = 0; l <= c->layers_per_block[from]; l++) {
            h = db_concat(t, h, skip[--n_skips], 3);
            h = db__unet_layer(n, c, &r, block, from, level, l, h, emb, text); /* [B,H,W,OC] */
        }
        if (level < last) { /* [B,2H,2W,OC] */
            db_tensor like = skip[n_skips - 1];
            if (db__block_resamples_in_resnet(block))
                h = db__resnet(n, &r, "upsamplers.0", h, emb, OC, scale, 1);
            else
                h = db__conv_layer(n, "upsamplers.0.conv",
                                   db_upsample2(t, h, like.dim[1], like.dim[2]), OC, 3, db_none);
        }
        if (features) features->up[level] = h;
        db__leave(n, here);
    }
    h = db__group_norm_layer(n, "conv_norm_out", h, db_none, c->norm_num_groups, c->norm_eps,
                             c->act);
    return db__conv_layer(n, "conv_out", h, c->out_channels, 3, db_none); /* [B,H,W,out_channels] */
}

db_tensor db_unet_forward(db_tape *t, db_unet *u, db_tensor x, db_tensor timestep, db_tensor text,
                          db_tensor class_labels, db_unet_features *features)
{
    db__net n;
    memset(&n, 0, sizeof n);
    n.tape = t, n.params = &u->params;
    return db__unet_record(&n, &u->config, x, timestep, text, class_labels, features);
}

/* ---- config.json ----------------------------------------------------------------------------- */

/* One number, or one for each level. */
static void db__per_level(db_ctx *ctx, const db_json *j, const char *key, const char *path,
                          size_t n, size_t otherwise, size_t *out)
{
    const db_json *item = db_json_get(j, key);
    int list = item && item->type == DB_JSON_ARRAY;
    size_t k;
    if (list && item->count != n)
        db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" has %zu entries for %zu levels", path, key,
                 item->count, n);
    for (k = 0; k < n; k++) {
        const db_json *v = list ? db_json_at(item, k) : item;
        if (v && v->type != DB_JSON_NULL) {
            if (!(v->type == DB_JSON_BOOL || (v->type == DB_JSON_NUMBER && v->is_integer)) ||
                v->integer < 0 || v->integer > DB__MOST_CHANNELS)
                db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" must hold whole numbers", path, key);
            else out[k] = (size_t)v->integer;
        } else {
            out[k] = otherwise;
        }
    }
}

static void db__block_types(db_ctx *ctx, const db_json *j, const char *key, const char *path,
                            int up, size_t n, db_block *out)
{
    static const char *const names[DB_BLOCK_COUNT][2] = {
#define DB__NAMES(id, down_name, up_name) {down_name, up_name},
        DB__BLOCKS(DB__NAMES)
#undef DB__NAMES
    };
    const db_json *list = db_json_get(j, key);
    size_t k;
    int b;
    if (!list || list->type != DB_JSON_ARRAY || list->count != n) {
        db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" must list one block for each of %zu levels",
                 path, key, n);
        return;
    }
    for (k = 0; k < n; k++) {
        const char *name =
            db_json_at(list, k)->type == DB_JSON_STRING ? db_json_at(list, k)->string : "?";
        for (b = 0; b < DB_BLOCK_COUNT && strcmp(name, names[b][up]); b++) {}
        if (b < DB_BLOCK_COUNT) out[k] = (db_block)b;
        else
            db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the block type \"%s\" is not supported", path,
                     name);
    }
}

/* Whether a key of config.json has another value than pair[1] (a string, or how a number or bool is
   written), which is also what its absence and null mean; the value is then in text. */
static int db__config_differs(const db_json *j, const char *const pair[2], char text[64])
{
    const db_json *v = db_json_get(j, pair[0]);
    if (!v || v->type == DB_JSON_NULL) return 0;
    if (v->type == DB_JSON_STRING) snprintf(text, 64, "%s", v->string);
    else if (v->type == DB_JSON_BOOL) snprintf(text, 64, "%s", v->integer ? "true" : "false");
    else if (v->type == DB_JSON_NUMBER) snprintf(text, 64, "%g", v->number);
    else snprintf(text, 64, "[...]");
    return strcmp(text, pair[1]) != 0;
}

/* Refuses values that would mean another network. */
static void db__config_fixed(db_ctx *ctx, const db_json *j, const char *path,
                             const char *const (*pair)[2], size_t n)
{
    char text[64];
    size_t k;
    for (k = 0; k < n; k++)
        if (db__config_differs(j, pair[k], text))
            db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"%s\" %s is not supported", path, pair[k][0],
                     text);
}

/* Refuses a configuration whose numbers do not make a network; `what` stands in messages. */
static db_result db__unet_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_unet_config *c = (const db_unet_config *)config;
    size_t k, last = c->n_levels - 1, transformers = 0,
              D = c->encoder_hid_dim ? c->encoder_hid_dim : c->cross_attention_dim;
    const size_t width[] = {D, c->cross_attention_dim, c->time_embedding_dim, c->in_channels,
                            c->out_channels};
    int sd = 0, simple = c->mid_block_type == DB_BLOCK_SIMPLE_CROSS_ATTN;
    if (c->n_levels < 1 || c->n_levels > DB_MAX_LEVELS)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: a U-Net has 1 to %d levels, not %zu", what,
                        DB_MAX_LEVELS, c->n_levels);
    for (k = 0; k < c->n_levels; k++) {
        sd |= !db__block_resamples_in_resnet(c->down_block_types[k]) ||
              !db__block_resamples_in_resnet(c->up_block_types[k]);
        simple |= c->down_block_types[k] == DB_BLOCK_SIMPLE_CROSS_ATTN ||
                  c->up_block_types[k] == DB_BLOCK_SIMPLE_CROSS_ATTN;
        if (!c->block_out_channels[k] || !c->layers_per_block[k] || c->layers_per_block[k] > 15 ||
            !c->attention_head_dim[k] || !c->norm_num_groups ||
            c->block_out_channels[k] % c->norm_num_groups || !c->transformer_layers_per_block[k] ||
            c->transformer_layers_per_block[k] > DB__MOST_LAYERS)
            return db__fail(ctx, DB_ERROR_FORMAT,
                            "%s: level %zu has channels, layers, heads or groups that do not fit "
                            "together",
                            what, k);
        transformers += (2 * c->layers_per_block[k] + 1) * c->transformer_layers_per_block[k];
    }
    if (transformers > DB__MOST_LAYERS)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu transformer layers are more than %d", what,
                        transformers, DB__MOST_LAYERS);
    for (k = 0; k < sizeof width / sizeof *width; k++)
        if (width[k] < 1 || width[k] > DB__MOST_CHANNELS)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu channels, which must be 1 to %d", what,
                            width[k], DB__MOST_CHANNELS);
    if (c->block_out_channels[0] < 2)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: one channel has no sine and cosine", what);
    if (simple && c->cross_attention_norm && c->cross_attention_dim % 32)
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: \"cross_attention_dim\" %zu does not make 32 groups", what,
                        c->cross_attention_dim);
    if ((sd || c->mid_block_type != DB_BLOCK_SIMPLE_CROSS_ATTN) && c->resnet_skip_time_act)
        return db__fail(ctx, DB_ERROR_UNSUPPORTED,
                        "%s: \"resnet_skip_time_act\" is not supported with Stable Diffusion's "
                        "blocks, nor without attention in the middle",
                        what);
    if (sd && c->resnet_out_scale_factor != 1)
        return db__fail(ctx, DB_ERROR_UNSUPPORTED,
                        "%s: \"resnet_out_scale_factor\" is not supported with Stable Diffusion's "
                        "blocks",
                        what);
    if (c->addition_embed_text &&
        (!c->addition_embed_type_num_heads || D % c->addition_embed_type_num_heads))
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: \"addition_embed_type_num_heads\" %zu does not divide the text's %zu "
                        "channels",
                        what, c->addition_embed_type_num_heads, D);
    for (k = 0; k < c->n_levels; k++) { /* whole heads; diffusers' transformers round them down */
        size_t d = c->attention_head_dim[k], C = c->block_out_channels[k],
               up = c->block_out_channels[last - k];
        int transformer = c->down_block_types[k] == DB_BLOCK_CROSS_ATTN ||
                          c->up_block_types[last - k] == DB_BLOCK_CROSS_ATTN ||
                          (k == last && c->mid_block_type == DB_BLOCK_CROSS_ATTN);
        if (((c->down_block_types[k] == DB_BLOCK_SIMPLE_CROSS_ATTN || transformer) && C % d) ||
            (c->up_block_types[k] == DB_BLOCK_SIMPLE_CROSS_ATTN && up % d))
            return db__fail(ctx, transformer ? DB_ERROR_UNSUPPORTED : DB_ERROR_FORMAT,
                            "%s: \"attention_head_dim\" %zu of block %zu does not divide its "
                            "channels",
                            what, d, k);
    }
    return ctx->result;
}

static db_result db__unet_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    db_unet_config *c = (db_unet_config *)config;
    static const char *const fixed[][2] = {{"time_embedding_type", "positional"},
                                           {"conv_in_kernel", "3"},
                                           {"conv_out_kernel", "3"},
                                           {"downsample_padding", "1"},
                                           {"attention_type", "default"},
                                           {"dual_cross_attention", "false"},
                                           {"encoder_hid_dim_type", "text_proj"},
                                           {"class_embeddings_concat", "false"},
                                           {"center_input_sample", "false"},
                                           {"num_attention_heads", "null"},
                                           {"timestep_post_act", "null"},
                                           {"time_cond_proj_dim", "null"},
                                           {"num_class_embeds", "null"},
                                           {"reverse_transformer_layers_per_block", "null"}};
    const db_json *channels = db_json_get(j, "block_out_channels"), *item;
    size_t cross[DB_MAX_LEVELS], only[DB_MAX_LEVELS], k;
    int only_bool = db_json_get(j, "only_cross_attention") &&
        db_json_get(j, "only_cross_attention")->type == DB_JSON_BOOL;
    const char *text;
    if (!channels || channels->type != DB_JSON_ARRAY || channels->count < 1 ||
        channels->count > DB_MAX_LEVELS)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"block_out_channels\" must list 1 to %d levels",
                        path, DB_MAX_LEVELS);
    c->n_levels = channels->count;
    db__per_level(ctx, j, "block_out_channels", path, c->n_levels, 0, c->block_out_channels);
    db__per_level(ctx, j, "layers_per_block", path, c->n_levels, 2, c->layers_per_block);
    db__per_level(ctx, j, "attention_head_dim", path, c->n_levels, 8, c->attention_head_dim);
    db__per_level(ctx, j, "cross_attention_dim", path, c->n_levels, 1280, cross);
    db__per_level(ctx, j, "only_cross_attention", path, c->n_levels, 0, only);
    db__per_level(ctx, j, "transformer_layers_per_block", path, c->n_levels, 1,
                  c->transformer_layers_per_block);
    db__block_types(ctx, j, "down_block_types", path, 0, c->n_levels, c->down_block_types);
    db__block_types(ctx, j, "up_block_types", path, 1, c->n_levels, c->up_block_types);
    db__config_fixed(ctx, j, path, fixed, sizeof fixed / sizeof *fixed);
    c->in_channels = db__config_size(ctx, j, "in_channels", path);
    c->out_channels = db__config_size(ctx, j, "out_channels", path);
    c->sample_size = (size_t)DB__MAX(1, db_json_int(j, "sample_size", 64));
    c->cross_attention_dim = cross[0];
    c->encoder_hid_dim = (size_t)db_json_int(j, "encoder_hid_dim", 0);
    c->addition_embed_type_num_heads = (size_t)db_json_int(j, "addition_embed_type_num_heads", 64);
    c->time_embedding_dim =
        (size_t)db_json_int(j, "time_embedding_dim", (int64_t)(4 * c->block_out_channels[0]));
    c->norm_num_groups = (size_t)db_json_int(j, "norm_num_groups", 32);
    c->norm_eps = (float)db_json_number(j, "norm_eps", 1e-5);
    c->freq_shift = (float)db_json_number(j, "freq_shift", 0);
    c->resnet_out_scale_factor = (float)db_json_number(j, "resnet_out_scale_factor", 1);
    c->mid_block_scale_factor = (float)db_json_number(j, "mid_block_scale_factor", 1);
    c->flip_sin_to_cos = db_json_bool(j, "flip_sin_to_cos", 1);
    c->resnet_skip_time_act = db_json_bool(j, "resnet_skip_time_act", 0);
    c->mid_block_only_cross_attention =
        db_json_bool(j, "mid_block_only_cross_attention", only_bool ? (int)only[0] : 0);
    c->act = db__activation_named(ctx, db_json_string(j, "act_fn", "silu"), path);
    c->time_embedding_act =
        db__activation_named(ctx, db_json_string(j, "time_embedding_act_fn", NULL), path);
    text = db_json_string(j, "cross_attention_norm", NULL);
    c->cross_attention_norm = text != NULL;
    if (text && strcmp(text, "group_norm"))
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"cross_attention_norm\" \"%s\" is not supported",
                 path, text);
    text = db_json_string(j, "addition_embed_type", NULL);
    c->addition_embed_text = text != NULL;
    if (text && strcmp(text, "text"))
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"addition_embed_type\" \"%s\" is not supported",
                 path, text);
    text = db_json_string(j, "class_embed_type", NULL);
    c->class_embed_timestep = text != NULL;
    if (text && strcmp(text, "timestep"))
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"class_embed_type\" \"%s\" is not supported",
                 path, text);
    item = db_json_get(j, "mid_block_type"); /* null: none, unlike what is left out */
    text = item && item->type == DB_JSON_NULL
               ? "null"
               : db_json_string(j, "mid_block_type", "UNetMidBlock2DCrossAttn");
    if (!strcmp(text, "UNetMidBlock2DCrossAttn")) c->mid_block_type = DB_BLOCK_CROSS_ATTN;
    else if (!strcmp(text, "UNetMidBlock2DSimpleCrossAttn"))
        c->mid_block_type = DB_BLOCK_SIMPLE_CROSS_ATTN;
    else if (!strcmp(text, "UNetMidBlock2D")) c->mid_block_type = DB_BLOCK_PLAIN;
    else
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"mid_block_type\" \"%s\" is not supported", path,
                 text);
    text = db_json_string(j, "resnet_time_scale_shift", "default");
    c->resnet_time_scale_shift = !strcmp(text, "scale_shift");
    if (!c->resnet_time_scale_shift && strcmp(text, "default"))
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: \"resnet_time_scale_shift\" \"%s\" is not supported", path, text);
    c->use_linear_projection = db_json_bool(j, "use_linear_projection", 0);
    for (k = 0; k < c->n_levels; k++) {
        c->only_cross_attention[k] = (int)only[k];
        if (cross[k] != cross[0])
            db__fail(ctx, DB_ERROR_FORMAT,
                     "%s: \"cross_attention_dim\" differs from level to level",
                     path);
    }
    return ctx->result;
}

static void db__unet_declare(db__net *n, const void *config)
{
    const db_unet_config *c = (const db_unet_config *)config;
    size_t image[4], text[3], one = 1;
    db_tensor x, words, number;
    image[0] = 1, image[1] = image[2] = (size_t)1 << (c->n_levels - 1), image[3] = c->in_channels;
    text[0] = 1, text[1] = 2,
    text[2] = c->encoder_hid_dim ? c->encoder_hid_dim : c->cross_attention_dim;
    x = db_input(n->tape, DB_F32, 4, image), words = db_input(n->tape, DB_F32, 3, text),
    number = db_input(n->tape, DB_F32, 1, &one);
    db__unet_record(n, c, x, number, words, number, NULL);
}

static const db__network db__unet_network = {sizeof(db_unet),
                                             offsetof(db_unet, config),
                                             sizeof(db_unet_config),
                                             "diffusion_pytorch_model",
                                             db__unet_parse,
                                             db__unet_check,
                                             db__unet_declare,
                                             NULL};

db_result db_unet_config_load(db_ctx *ctx, const char *path, db_unet_config *out)
{
    return db__config_load(ctx, &db__unet_network, path, out);
}

db_result db_unet_add_lora(db_unet *u, size_t rank, float alpha, uint64_t seed)
{
    return db__lora_add(&db__unet_network, &u->params, rank, alpha, seed);
}

db_result db_unet_create(db_ctx *ctx, const db_unet_config *config, db_unet **out)
{
    *out = (db_unet *)db__network_create(ctx, &db__unet_network, config, "db_unet_create");
    return ctx->result;
}

db_result db_unet_load(db_ctx *ctx, const char *directory, db_unet **out)
{
    *out = (db_unet *)db__network_load(ctx, &db__unet_network, directory);
    return ctx->result;
}

void db_unet_free(db_unet *u) { db__network_free(u); }

/* ---- the autoencoder ----------------------------------------------------------------------------
   AutoencoderKL (Rombach et al., 2022): the same ResNets without a time embedding, one attention
   layer with a single head in the middle of either half.

   Easy to get wrong
   - Going down pads the right and the bottom edge only.
   - All its norms have eps 1e-6, and the decoder has one ResNet a level more than the encoder.
   - The last activation is SiLU whatever act_fn says.
   - `moments` are means and log variances of the latents; scaling_factor comes after drawing
     from them. */

/* ResNet, attention, ResNet. x [B,h,w,C] */
static db_tensor db__vae_middle(db__net *n, const db_vae_config *c, const db__resnets *r,
                                db_tensor x)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "mid_block"), B = x.dim[0], C = x.dim[3];
    db_tensor h;
    x = db__resnet(n, r, "resnets.0", x, db_none, C, 1, 0);
    if (c->mid_block_add_attention) {
        h = db__group_norm_layer(n, "attentions.0.group_norm", x, db_none, r->groups, r->eps,
                                 DB_ACT_NONE);
        h = db__shape3(t, h, B, x.dim[1] * x.dim[2], C); /* [B,P,C] */
        h = db__attention_layer(n, "attentions.0", h, h, 1, 1, x);
        x = db__shape4(t, h, B, x.dim[1], x.dim[2], C);
    }
    x = db__resnet(n, r, "resnets.1", x, db_none, C, 1, 0);
    db__leave(n, here);
    return x;
}

static db__resnets db__vae_resnets(const db_vae_config *c)
{
    db__resnets r;
    r.groups = c->norm_num_groups, r.eps = 1e-6f, r.act = c->act, r.scale_shift = 0;
    return r;
}

static db_tensor db__vae_encode_record(db__net *n, const db_vae_config *c, db_tensor x)
{
    db__resnets r = db__vae_resnets(c);
    size_t L = 2 * c->latent_channels, root = db__enter(n, "encoder"), here, level, l;
    db_tensor h = db__conv_layer(n, "conv_in", db_cast(n->tape, x, n->tape->compute),
                                 c->block_out_channels[0], 3, db_none); /* [B,H,W,ch0] */
    for (level = 0; level < c->n_levels; level++) {
        size_t OC = c->block_out_channels[level];
        here = db__enter(n, "down_blocks.%zu", level);
        for (l = 0; l < c->layers_per_block; l++) {
            char name[32];
            snprintf(name, sizeof name, "resnets.%zu", l);
            h = db__resnet(n, &r, name, h, db_none, OC, 1, 0); /* [B,H,W,OC] */
        }
        if (level + 1 < c->n_levels)
            h = db__conv_stride_layer(n, "downsamplers.0.conv", h, OC, 3, db_none, 2, 0,
                                      1); /* [B,H/2,W/2,OC] */
        db__leave(n, here);
    }
    h = db__vae_middle(n, c, &r, h);
    h = db__group_norm_layer(n, "conv_norm_out", h, db_none, r.groups, r.eps, DB_ACT_SILU);
    h = db__conv_layer(n, "conv_out", h, L, 3, db_none); /* [B,h,w,2L] */
    db__leave(n, root);
    return c->use_quant_conv ? db__conv_layer(n, "quant_conv", h, L, 1, db_none) : h;
}

static db_tensor db__vae_decode_record(db__net *n, const db_vae_config *c, db_tensor z)
{
    db_tape *t = n->tape;
    db__resnets r = db__vae_resnets(c);
    size_t last = c->n_levels - 1, root, here, level, l;
    db_tensor h = db_cast(t, z, t->compute); /* [B,h,w,L] */
    if (c->use_post_quant_conv)
        h = db__conv_layer(n, "post_quant_conv", h, c->latent_channels, 1, db_none);
    root = db__enter(n, "decoder");
    h = db__conv_layer(n, "conv_in", h, c->block_out_channels[last], 3, db_none);
    h = db__vae_middle(n, c, &r, h);
    for (level = 0; level < c->n_levels; level++) {
        size_t OC = c->block_out_channels[last - level];
        here = db__enter(n, "up_blocks.%zu", level);
        for (l = 0; l <= c->layers_per_block; l++) {
            char name[32];
            snprintf(name, sizeof name, "resnets.%zu", l);
            h = db__resnet(n, &r, name, h, db_none, OC, 1, 0); /* [B,H,W,OC] */
        }
        if (level < last)
            h = db__conv_layer(n, "upsamplers.0.conv",
                               db_upsample2(t, h, 2 * h.dim[1], 2 * h.dim[2]), OC, 3, db_none);
        db__leave(n, here);
    }
    h = db__group_norm_layer(n, "conv_norm_out", h, db_none, r.groups, r.eps, DB_ACT_SILU);
    h = db__conv_layer(n, "conv_out", h, c->out_channels, 3, db_none); /* [B,H,W,3] */
    db__leave(n, root);
    return h;
}

static db_result db__vae_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_vae_config *c = (const db_vae_config *)config;
    size_t k;
    if (c->n_levels < 1 || c->n_levels > DB_MAX_LEVELS || !c->latent_channels)
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: %zu levels, which must be 1 to %d, or no latent channels", what,
                        c->n_levels, DB_MAX_LEVELS);
    for (k = 0; k < c->n_levels; k++)
        if (!c->block_out_channels[k] || !c->norm_num_groups ||
            c->norm_num_groups > c->block_out_channels[k] ||
            c->block_out_channels[k] % c->norm_num_groups)
            return db__fail(ctx, DB_ERROR_FORMAT,
                            "%s: the %zu channels of level %zu do not divide into "
                            "\"norm_num_groups\" %zu",
                            what, c->block_out_channels[k], k, c->norm_num_groups);
    if (c->layers_per_block < 1 || c->layers_per_block > 15 || c->in_channels - 1 > 15 ||
        c->out_channels - 1 > 15 || !(c->scaling_factor > 0))
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: \"layers_per_block\", \"in_channels\", \"out_channels\" or "
                        "\"scaling_factor\" is out of range",
                        what);
    return ctx->result;
}

static db_result db__vae_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    static const char *const fixed[][2] = {
        {"shift_factor", "null"}, {"latents_mean", "null"}, {"latents_std", "null"}};
    db_vae_config *c = (db_vae_config *)config;
    const db_json *channels = db_json_get(j, "block_out_channels"), *list, *item;
    size_t k;
    if (!channels || channels->type != DB_JSON_ARRAY || channels->count < 1 ||
        channels->count > DB_MAX_LEVELS)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"block_out_channels\" must list 1 to %d levels",
                        path, DB_MAX_LEVELS);
    c->n_levels = channels->count;
    db__per_level(ctx, j, "block_out_channels", path, c->n_levels, 0, c->block_out_channels);
    for (k = 0; k < 2; k++) {
        list = db_json_get(j, k ? "up_block_types" : "down_block_types");
        if (!list || list->type != DB_JSON_ARRAY || list->count != c->n_levels)
            return db__fail(ctx, DB_ERROR_FORMAT,
                            "%s: the block types must list one block for each of %zu levels", path,
                            c->n_levels);
        for (item = list->first; item; item = item->next)
            if (item->type != DB_JSON_STRING ||
                strcmp(item->string, k ? "UpDecoderBlock2D" : "DownEncoderBlock2D"))
                db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the block type \"%s\" is not supported",
                         path, item->type == DB_JSON_STRING ? item->string : "?");
    }
    db__config_fixed(ctx, j, path, fixed, sizeof fixed / sizeof *fixed);
    c->in_channels = (size_t)db_json_int(j, "in_channels", 3);
    c->out_channels = (size_t)db_json_int(j, "out_channels", 3);
    c->latent_channels = db__config_size(ctx, j, "latent_channels", path);
    c->layers_per_block = (size_t)db_json_int(j, "layers_per_block", 1);
    c->norm_num_groups = (size_t)db_json_int(j, "norm_num_groups", 32);
    c->sample_size = (size_t)DB__MAX(1, db_json_int(j, "sample_size", 32));
    c->scaling_factor = (float)db_json_number(j, "scaling_factor", 0.18215);
    c->act = db__activation_named(ctx, db_json_string(j, "act_fn", "silu"), path);
    c->use_quant_conv = db_json_bool(j, "use_quant_conv", 1);
    c->use_post_quant_conv = db_json_bool(j, "use_post_quant_conv", 1);
    c->mid_block_add_attention = db_json_bool(j, "mid_block_add_attention", 1);
    return ctx->result;
}

static void db__vae_declare(db__net *n, const void *config)
{
    const db_vae_config *c = (const db_vae_config *)config;
    size_t dim[4];
    dim[0] = 1, dim[1] = dim[2] = (size_t)1 << (c->n_levels - 1), dim[3] = c->in_channels;
    db__vae_encode_record(n, c, db_input(n->tape, DB_F32, 4, dim));
    dim[1] = dim[2] = 1, dim[3] = c->latent_channels;
    db__vae_decode_record(n, c, db_input(n->tape, DB_F32, 4, dim));
}

/* Until 2023 diffusers called the attention's layers otherwise. */
static int db__vae_names(const void *config, const char *name, int alternative, char *out)
{
    static const char *const pair[][2] = {{".to_q.", ".query."},
                                          {".to_k.", ".key."},
                                          {".to_v.", ".value."},
                                          {".to_out.0.", ".proj_attn."}};
    (void)config;
    return alternative == 1 && snprintf(out, DB__NAME, "%s", name) < DB__NAME &&
           db__replace(out, pair, 4);
}

static const db__network db__vae_network = {
    sizeof(db_vae), offsetof(db_vae, config), sizeof(db_vae_config), "diffusion_pytorch_model",
    db__vae_parse,  db__vae_check, db__vae_declare, db__vae_names};

db_result db_vae_config_load(db_ctx *ctx, const char *path, db_vae_config *out)
{
    return db__config_load(ctx, &db__vae_network, path, out);
}

db_result db_vae_create(db_ctx *ctx, const db_vae_config *config, db_vae **out)
{
    *out = (db_vae *)db__network_create(ctx, &db__vae_network, config, "db_vae_create");
    return ctx->result;
}

db_result db_vae_load(db_ctx *ctx, const char *directory, db_vae **out)
{
    *out = (db_vae *)db__network_load(ctx, &db__vae_network, directory);
    return ctx->result;
}

void db_vae_free(db_vae *v) { db__network_free(v); }

size_t db_vae_factor(const db_vae *v) { return (size_t)1 << (v->config.n_levels - 1); }

db_tensor db_vae_encode_forward(db_tape *t, db_vae *v, db_tensor x)
{
    db__net n;
    memset(&n, 0, sizeof n);
    n.tape = t, n.params = &v->params;
    return db__vae_encode_record(&n, &v->config, x);
}

db_tensor db_vae_decode_forward(db_tape *t, db_vae *v, db_tensor z)
{
    db__net n;
    memset(&n, 0, sizeof n);
    n.tape = t, n.params = &v->params;
    return db__vae_decode_record(&n, &v->config, z);
}

/* Runs one half on B inputs [H,W,C], one at a time, with one tape. */
static db_result db__vae_run(db_vae *v, db_tensor (*half)(db_tape *, db_vae *, db_tensor),
                             const float *in, size_t B, size_t H, size_t W, size_t C, float *out)
{
    db_ctx *ctx = v->params.ctx;
    db_tape *t = NULL;
    db_tensor x, y;
    size_t dim[4], b;
    if (db_tape_create(ctx, &t) != DB_OK) return ctx->result;
    dim[0] = 1, dim[1] = H, dim[2] = W, dim[3] = C;
    x = db_input(t, DB_F32, 4, dim);
    y = half(t, v, x);
    db_keep(t, y);
    for (b = 0; b < B && ctx->result == DB_OK; b++) {
        db_upload(t, x, in + b * H * W * C);
        db_run(t, 0, 0);
        db_download(t, y, out + b * db_count(y));
    }
    db_tape_destroy(t);
    return ctx->result;
}

db_result db_vae_encode(db_vae *v, const float *x, size_t B, size_t H, size_t W, float *moments)
{
    return db__vae_run(v, db_vae_encode_forward, x, B, H, W, v->config.in_channels, moments);
}

/* The window [y,y+h) x [x,x+w) of z [.,W,C] into out. */
static void db__window(const float *z, size_t W, size_t C, size_t y, size_t x, size_t h, size_t w,
                       float *out)
{
    size_t r;
    for (r = 0; r < h; r++)
        memcpy(out + r * w * C, z + ((y + r) * W + x) * C, w * C * sizeof(float));
}

/* Blends the first n rows (or columns) of b [bh,bw,C] with the last n of a [ah,aw,C] above it (or
   to its left). */
static void db__blend(const float *a, size_t ah, size_t aw, float *b, size_t bh, size_t bw,
                      size_t C, size_t n, int columns)
{
    size_t i, j, ch, m = DB__MIN(n, columns ? DB__MIN(aw, bw) : DB__MIN(ah, bh));
    for (i = 0; i < (columns ? bh : m); i++)
        for (j = 0; j < (columns ? m : bw); j++)
            for (ch = 0; ch < C; ch++) {
                float share = (float)(columns ? j : i) / (float)m;
                const float *from =
                    columns ? a + (i * aw + aw - m + j) * C : a + ((ah - m + i) * aw + j) * C;
                b[(i * bw + j) * C + ch] =
                    from[ch] * (1 - share) + b[(i * bw + j) * C + ch] * share;
            }
}

/* One picture in tiles. z [h,w,L] unscaled */
static db_result db__vae_decode_tiled(db_vae *v, const float *z, size_t h, size_t w, size_t tile,
                                      float *out)
{
    db_ctx *ctx = v->params.ctx;
    size_t f = db_vae_factor(v), L = v->config.latent_channels, C = v->config.out_channels,
           S = tile * f;
    size_t step = DB__MAX(tile * 3 / 4, 1), n = S - step * f, columns = DB__CEIL_DIV(w, step), y, x,
           r;
    float *rows = (float *)db__alloc(ctx, 2 * columns * S * S * C,
                                     sizeof(float)); /* the decoded tiles of two rows */
    float *in = (float *)db__alloc(ctx, tile * tile * L, sizeof(float));
    for (y = 0; y < h && rows && in && ctx->result == DB_OK; y += step)
        for (x = 0; x < w && ctx->result == DB_OK; x += step) {
            size_t th = DB__MIN(tile, h - y), tw = DB__MIN(tile, w - x),
                   up = DB__MIN(tile, h - y + step), j = x / step;
            float *above = rows + ((y / step + 1) % 2 * columns + j) * S * S * C,
                  *here = rows + (y / step % 2 * columns + j) * S * S * C;
            db__window(z, w, L, y, x, th, tw, in);
            if (db__vae_run(v, db_vae_decode_forward, in, 1, th, tw, L, here) != DB_OK) break;
            if (y) db__blend(above, up * f, tw * f, here, th * f, tw * f, C, n, 0);
            if (x)
                db__blend(here - S * S * C, th * f, DB__MIN(tile, w - x + step) * f, here, th * f,
                          tw * f, C, n, 1);
            for (r = 0; r < DB__MIN(th * f, S - n); r++)
                memcpy(out + ((y * f + r) * w * f + x * f) * C, here + r * tw * f * C,
                       DB__MIN(tw * f, S - n) * C * sizeof(float));
        }
    db__free(ctx, rows);
    db__free(ctx, in);
    return ctx->result;
}

db_result db_vae_decode(db_vae *v, const float *latents, size_t B, size_t h, size_t w, size_t tile,
                        float *out)
{
    db_ctx *ctx = v->params.ctx;
    size_t f = db_vae_factor(v), n = h * w * v->config.latent_channels, b, k;
    float *z = (float *)db__alloc(ctx, B * n, sizeof(float));
    for (k = 0; z && k < B * n; k++) z[k] = latents[k] / v->config.scaling_factor;
    if (z && (!tile || (h <= tile && w <= tile)))
        db__vae_run(v, db_vae_decode_forward, z, B, h, w, v->config.latent_channels, out);
    else
        for (b = 0; z && b < B && ctx->result == DB_OK; b++)
            db__vae_decode_tiled(v, z + b * n, h, w, tile,
                                 out + b * h * f * w * f * v->config.out_channels);
    db__free(ctx, z);
    return ctx->result;
}

/* ==== [DB-09] Noise schedule and samplers ========================================================

   x_t = alpha_t x + sigma_t eps with alpha_t^2 = alphas_cumprod[t], sigma_t^2 = 1 -
   alphas_cumprod[t]. The network predicts eps, x, or v = alpha_t eps - sigma_t x (Salimans and Ho,
   2022).

   DDPM (Ho et al., 2020) is the ancestral sampler, DDIM (Song et al., 2021) the deterministic one
   at eta = 0, DPM-Solver++ (Lu et al., 2022) a solver of second order that looks back one step.
   Dynamic thresholding is Imagen's (section 2.3).

   Easy to get wrong
   - "previous" is the next timestep of the chosen subsequence, not t - 1; the betas follow from
     it. But diffusers' DDIM goes to t - num_train_timesteps / steps whatever the spacing.
   - A learned variance is interpolated between log beta~ and log beta; with guidance it comes
     from the branch with the text, and only the mean is guided.
   - Thresholding uses the quantile of |x|, interpolated between order statistics as
     torch.quantile does.
   - DPM-Solver++ spreads n + 1 points and leaves the last away (but "trailing" ones), and never
     clips.
   - A file that names no timestep_spacing means another one to DPM-Solver++ than to the others. */

static db_result db__schedule_betas(db_schedule *s, const char *kind, double start, double end)
{
    size_t t, n = s->num_train_timesteps;
    double product = 1;
    const double half_pi = 1.57079632679489661923;
    s->alphas_cumprod = (double *)db__alloc(s->ctx, n, sizeof(double));
    if (!s->alphas_cumprod) return s->ctx->result;
    for (t = 0; t < n; t++) {
        double u = n > 1 ? (double)t / (double)(n - 1) : 0, beta;
        if (!strcmp(kind, "linear")) {
            beta = start + (end - start) * u;
        } else if (!strcmp(kind, "scaled_linear")) {
            beta = sqrt(start) + (sqrt(end) - sqrt(start)) * u;
            beta *= beta;
        } else if (!strcmp(kind, "squaredcos_cap_v2")) {
            double a = cos(((double)t / (double)n + 0.008) / 1.008 * half_pi),
                   b = cos(((double)(t + 1) / (double)n + 0.008) / 1.008 * half_pi);
            beta = DB__MIN(1 - b * b / (a * a), 0.999);
        } else {
            db_schedule_free(s);
            return db__fail(s->ctx, DB_ERROR_UNSUPPORTED,
                            "the beta_schedule \"%s\" is not supported", kind);
        }
        product *= 1 - beta;
        s->alphas_cumprod[t] = product;
    }
    return DB_OK;
}

/* rescale_betas_zero_snr (Lin et al., 2024): alpha_t shifted and stretched so that the last one is
   0. */
static void db__schedule_zero_snr(db_schedule *s)
{
    size_t t, n = s->num_train_timesteps;
    double first = sqrt(s->alphas_cumprod[0]), last = sqrt(s->alphas_cumprod[n - 1]);
    for (t = 0; t < n; t++) {
        double alpha = (sqrt(s->alphas_cumprod[t]) - last) * first / (first - last);
        s->alphas_cumprod[t] = alpha * alpha;
    }
}

db_result db_schedule_init(db_ctx *ctx, const char *beta_schedule, double beta_start,
                           double beta_end, size_t steps, db_schedule *s)
{
    memset(s, 0, sizeof *s);
    s->ctx = ctx;
    if (ctx->result != DB_OK) return ctx->result;
    if (!steps) return db__fail(ctx, DB_ERROR_ARGUMENT, "a schedule without timesteps");
    s->num_train_timesteps = steps;
    s->clip_sample = 1;
    s->clip_sample_range = 1;
    s->dynamic_thresholding_ratio = 0.995;
    s->sample_max_value = 1;
    s->set_alpha_to_one = 1;
    s->solver_order = 2;
    s->lower_order_final = s->final_sigma_zero = 1;
    s->lambda_min_clipped = -HUGE_VAL;
    return db__schedule_betas(s, beta_schedule, beta_start, beta_end);
}

/* Which of `names` the string `key` is; `otherwise` when it is absent; refused by name when it is
   none. */
static int db__config_choice(db_ctx *ctx, const db_json *j, const char *key, const char *path,
                             const char *const *names, size_t n, int otherwise)
{
    const char *text = db_json_string(j, key, NULL);
    size_t k;
    for (k = 0; text && k < n; k++)
        if (!strcmp(text, names[k])) return (int)k;
    if (text)
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the %s \"%s\" is not supported", path, key, text);
    return otherwise;
}

static void db__schedule_parse(db_ctx *ctx, const db_json *j, const char *path, db_schedule *s)
{
    static const char *const classes[] = {"DDPMScheduler", "DDIMScheduler",
                                          "DPMSolverMultistepScheduler"};
    static const char *const predictions[] = {"epsilon", "sample", "v_prediction"},
                             *const spacings[] = {"", "leading", "trailing", "linspace"};
    static const char *const variances[] = {"fixed_small",     "fixed_small_log", "fixed_large",
                                            "fixed_large_log", "learned",         "learned_range"};
    static const char *const solvers[] = {"midpoint", "heun", "logrho", "bh1", "bh2"},
                             *const finals[] = {"sigma_min", "zero"};
    static const char *const fixed[][2] = {
        {"algorithm_type", "dpmsolver++"},   {"use_karras_sigmas", "false"},
        {"use_exponential_sigmas", "false"}, {"use_beta_sigmas", "false"},
        {"use_lu_lambdas", "false"},         {"use_flow_sigmas", "false"},
        {"use_dynamic_shifting", "false"}};
    static const char *const trained[][2] = {{"trained_betas", "null"}};
    const char *name = db_json_string(j, "_class_name", "DDPMScheduler");
    char text[64];
    size_t i;
    int k;
    for (k = 0; k < 3 && strcmp(name, classes[k]); k++) {}
    s->sampler = k < 3 ? (db_sampler)k : DB_SAMPLER_DPMSOLVER;
    if (k == 3)
        db__log(ctx, DB_LOG_INFO,
                "%s: %s is not implemented; DPM-Solver++ stands in for it unless another scheduler "
                "is asked for",
                path, name);
    db__config_fixed(ctx, j, path, trained, 1);
    s->prediction_type = (db_prediction)db__config_choice(ctx, j, "prediction_type", path,
                                                          predictions, 3, DB_PREDICT_EPSILON);
    s->timestep_spacing = (db_spacing)db__config_choice(ctx, j, "timestep_spacing", path, spacings,
                                                        4, DB_SPACING_DEFAULT);
    s->variance_type = (db_variance)db__config_choice(ctx, j, "variance_type", path, variances, 6,
                                                      DB_VARIANCE_FIXED_SMALL);
    if (k == DB_SAMPLER_DPMSOLVER) { /* to another class they mean something else */
        s->solver_type = db__config_choice(ctx, j, "solver_type", path, solvers, 5, 0) == 1
            ? DB_SOLVER_HEUN
            : DB_SOLVER_MIDPOINT; /* as diffusers takes the last three */
        s->solver_order = (int)db_json_int(j, "solver_order", 2);
        s->lower_order_final = db_json_bool(j, "lower_order_final", 1);
        s->euler_at_final = db_json_bool(j, "euler_at_final", 0);
        s->lambda_min_clipped = db_json_number(j, "lambda_min_clipped", -HUGE_VAL);
        s->final_sigma_zero = db__config_choice(ctx, j, "final_sigmas_type", path, finals, 2, 1);
        if (s->solver_order != 1 && s->solver_order != 2)
            snprintf(s->unsupported, sizeof s->unsupported, "\"solver_order\" %d", s->solver_order);
        for (i = 0; i < sizeof fixed / sizeof *fixed; i++)
            if (db__config_differs(j, fixed[i], text))
                snprintf(s->unsupported, sizeof s->unsupported, "\"%s\" %s", fixed[i][0], text);
    }
    s->clip_sample = db_json_bool(j, "clip_sample", 1);
    s->clip_sample_range = db_json_number(j, "clip_sample_range", 1);
    s->thresholding = db_json_bool(j, "thresholding", 0);
    s->dynamic_thresholding_ratio = db_json_number(j, "dynamic_thresholding_ratio", 0.995);
    s->sample_max_value = db_json_number(j, "sample_max_value", 1);
    s->steps_offset = (int)db_json_int(j, "steps_offset", 0);
    s->set_alpha_to_one = db_json_bool(j, "set_alpha_to_one", 1);
    if (!(s->dynamic_thresholding_ratio >= 0 && s->dynamic_thresholding_ratio <= 1))
        db__fail(ctx, DB_ERROR_FORMAT, "%s: \"dynamic_thresholding_ratio\" must lie in [0, 1]",
                 path);
    if (db_json_bool(j, "rescale_betas_zero_snr", 0) && s->alphas_cumprod) db__schedule_zero_snr(s);
}

static db_result db__schedule_read(db_ctx *ctx, const db_json *j, const char *path, db_schedule *s)
{
    static const char *const betas[] = {"linear", "scaled_linear", "squaredcos_cap_v2"};
    int kind = db__config_choice(ctx, j, "beta_schedule", path, betas, 3, 0);
    double start = db_json_number(j, "beta_start", 1e-4), end = db_json_number(j, "beta_end", 0.02);
    int64_t steps = db_json_int(j, "num_train_timesteps", 1000);
    memset(s, 0, sizeof *s);
    if (j->type != DB_JSON_OBJECT)
        db__fail(ctx, DB_ERROR_FORMAT, "%s: not a scheduler's configuration", path);
    else if (steps < 1 || steps > 1000000 || !(start > 0 && end >= start && end < 1))
        db__fail(ctx, DB_ERROR_FORMAT,
                 "%s: \"num_train_timesteps\", \"beta_start\" or \"beta_end\" is out of range",
                 path);
    else if (db_schedule_init(ctx, betas[kind], start, end, (size_t)steps, s) == DB_OK)
        db__schedule_parse(ctx, j, path, s);
    if (ctx->result != DB_OK) db_schedule_free(s);
    return ctx->result;
}

db_result db_schedule_load(db_ctx *ctx, const char *path, db_schedule *s)
{
    const db_json *j = db_json_load(ctx, path);
    memset(s, 0, sizeof *s);
    if (j) db__schedule_read(ctx, j, path, s);
    db_json_free(j);
    return ctx->result;
}

void db_schedule_free(db_schedule *s)
{
    if (s->ctx) db__free(s->ctx, s->alphas_cumprod);
    s->alphas_cumprod = NULL;
}

void db_schedule_coefficients(const db_schedule *s, size_t t, float *alpha, float *sigma)
{
    *alpha = (float)sqrt(s->alphas_cumprod[t]);
    *sigma = (float)sqrt(1 - s->alphas_cumprod[t]);
}

/* ---- trajectories ---------------------------------------------------------------------------- */

/* DPM-Solver++ leaves out timesteps whose lambda = log(alpha / sigma) is below lambda_min_clipped:
   how many stay. */
static size_t db__lambda_steps(const db_schedule *s)
{
    size_t n = s->num_train_timesteps;
    while (n > 1 && 0.5 * log(s->alphas_cumprod[n - 1] / (1 - s->alphas_cumprod[n - 1])) <
                        s->lambda_min_clipped)
        n--;
    return n;
}

static void db__fill_timesteps(db_trajectory *tr)
{
    const db_schedule *s = tr->schedule;
    int dpm = tr->sampler == DB_SAMPLER_DPMSOLVER;
    size_t n = s->num_train_timesteps, last = dpm ? db__lambda_steps(s) : n, steps = tr->n,
           points = dpm ? steps + 1 : steps, k;
    db_spacing spacing = s->timestep_spacing != DB_SPACING_DEFAULT ? s->timestep_spacing
                         : dpm                                     ? DB_SPACING_LINSPACE
                                                                   : DB_SPACING_LEADING;
    /* numpy's order of roundings (arange, linspace), which decides where a step falls on a half */
    double stride = ((double)last - (double)n / (double)steps) - (double)last;
    if (spacing == DB_SPACING_TRAILING && last < n)
        tr->n = (size_t)ceil((double)last * (double)steps / (double)n);
    for (k = 0; k < tr->n; k++) {
        double at = 0;
        if (spacing == DB_SPACING_LEADING)
            at = (double)((points - 1 - k) * (last / points)) + s->steps_offset;
        if (spacing == DB_SPACING_TRAILING) at = rint((double)last + (double)k * stride) - 1;
        if (spacing == DB_SPACING_LINSPACE && points > 1) /* the end is exact */
            at = k ? rint((double)(points - 1 - k) * ((double)(last - 1) / (double)(points - 1)))
                   : (double)(last - 1);
        tr->timestep[k] = (size_t)DB__MIN(DB__MAX(at, 0.0), (double)(n - 1));
    }
}

db_result db_trajectory_init(const db_schedule *s, db_sampler sampler, size_t n, size_t count,
                             db_trajectory *tr)
{
    memset(tr, 0, sizeof *tr);
    tr->schedule = s, tr->sampler = sampler, tr->n = n, tr->count = count;
    if (sampler == DB_SAMPLER_DPMSOLVER && s->unsupported[0])
        return db__fail(s->ctx, DB_ERROR_UNSUPPORTED,
                        "DPM-Solver++ with %s is not supported: choose another scheduler",
                        s->unsupported);
    if (n < 1 || n > s->num_train_timesteps)
        return db__fail(s->ctx, DB_ERROR_ARGUMENT, "%zu steps asked for, the schedule has 1 to %zu",
                        n, s->num_train_timesteps);
    tr->timestep = (size_t *)db__alloc(s->ctx, n, sizeof(size_t));
    tr->x0 = (float *)db__alloc(s->ctx, count, sizeof(float));
    tr->last_x0 = (float *)db__alloc(s->ctx, count, sizeof(float));
    if (s->ctx->result == DB_OK) db__fill_timesteps(tr);
    return s->ctx->result;
}

void db_trajectory_free(db_trajectory *tr)
{
    if (!tr->schedule) return;
    db__free(tr->schedule->ctx, tr->timestep);
    db__free(tr->schedule->ctx, tr->x0);
    db__free(tr->schedule->ctx, tr->last_x0);
    memset(tr, 0, sizeof *tr);
}

/* alphas_cumprod at node k of the trajectory; node n is the end. */
static double db__alpha_bar(const db_trajectory *tr, size_t k)
{
    const db_schedule *s = tr->schedule;
    double a = k < tr->n ? s->alphas_cumprod[tr->timestep[k]] : 1;
    if (k < tr->n)
        return a > 0 || tr->sampler != DB_SAMPLER_DPMSOLVER
            ? a
            : ldexp(1, -24); /* rescale_betas_zero_snr: lambda stays finite */
    if (tr->sampler == DB_SAMPLER_DDPM) return 1;
    return (tr->sampler == DB_SAMPLER_DDIM ? s->set_alpha_to_one : s->final_sigma_zero)
               ? 1
               : s->alphas_cumprod[0];
}

static int db__compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Imagen's dynamic thresholding of one sample: s = quantile(|x|) within [1, max], x = clamp(x, -s,
   s) / s. */
static void db__threshold(const db_schedule *s, float *x, size_t n, float *work)
{
    double at = s->dynamic_thresholding_ratio * (double)(n - 1), limit;
    size_t low = (size_t)at, high = DB__MIN(low + 1, n - 1), k;
    for (k = 0; k < n; k++) work[k] = fabsf(x[k]);
    qsort(work, n, sizeof *work, db__compare_floats);
    limit = (double)work[low] + ((double)work[high] - (double)work[low]) * (at - (double)low);
    limit = DB__MIN(DB__MAX(limit, 1.0), DB__MAX(1.0, s->sample_max_value));
    for (k = 0; k < n; k++)
        x[k] = DB__MIN(DB__MAX(x[k], -(float)limit), (float)limit) / (float)limit;
}

/* Clipping turns what is not a number into one: looked for before, it cannot pass for a picture. */
static db_result db__check_numbers(db_ctx *ctx, const float *x, size_t n, const char *what)
{
    size_t k;
    for (k = 0; k < n; k++)
        if (x[k] != x[k])
            return db__fail(ctx, DB_ERROR_NUMERIC,
                            "%s is not a number: the weights or the precision are at fault", what);
    return ctx->result;
}

/* What the network's output says the clean images are, clipped or thresholded: tr->x0 [B,P,C]. */
static db_result db__predict_x0(db_trajectory *tr, double alpha, double sigma, size_t B, size_t P,
                                size_t C, size_t CP, const float *pred, const float *x)
{
    const db_schedule *s = tr->schedule;
    size_t n = P * C, i, b;
    float *work = s->thresholding ? (float *)db__alloc(s->ctx, n, sizeof(float)) : NULL;
    for (i = 0; i < B * n; i++) {
        double y = (double)pred[i / C * CP + i % C], x_t = (double)x[i];
        tr->x0[i] = (float)(s->prediction_type == DB_PREDICT_EPSILON ? (x_t - sigma * y) / alpha
                            : s->prediction_type == DB_PREDICT_V     ? alpha * x_t - sigma * y
                                                                     : y);
    }
    if (db__check_numbers(s->ctx, tr->x0, B * n, "a predicted picture") != DB_OK) {
        db__free(s->ctx, work);
        return s->ctx->result;
    }
    for (b = 0; b < B && work; b++) db__threshold(s, tr->x0 + b * n, n, work);
    if (!s->thresholding && s->clip_sample && tr->sampler != DB_SAMPLER_DPMSOLVER)
        for (i = 0; i < B * n; i++)
            tr->x0[i] = (float)DB__MIN(DB__MAX((double)tr->x0[i], -s->clip_sample_range),
                                       s->clip_sample_range);
    db__free(s->ctx, work);
    return s->ctx->result;
}

int db_trajectory_draws(const db_trajectory *tr, size_t k)
{
    return tr->sampler == DB_SAMPLER_DDPM ? tr->timestep[k] > 0
                                          : tr->sampler == DB_SAMPLER_DDIM && tr->eta > 0;
}

/* The posterior q(x_next | x_t, x0), DDPM eq. 7. */
static void db__ddpm_step(const db_trajectory *tr, size_t k, double a_t, double a_n, size_t C,
                          size_t CP, const float *pred, const float *noise, float *x)
{
    db_variance kind = tr->schedule->variance_type;
    double ratio = a_t / a_n, beta = 1 - ratio,
           small =
               DB__MAX((1 - a_n) / (1 - a_t) * beta, 1e-20); /* beta~, the posterior's variance */
    double of_x0 = sqrt(a_n) * beta / (1 - a_t), of_x = sqrt(ratio) * (1 - a_n) / (1 - a_t);
    size_t i;
    for (i = 0; i < tr->count; i++) {
        double variance =
            kind == DB_VARIANCE_FIXED_LARGE || kind == DB_VARIANCE_FIXED_LARGE_LOG ? beta : small;
        double v = CP >= 2 * C ? (double)pred[i / C * CP + C + i % C] : 0;
        if (kind == DB_VARIANCE_LEARNED && CP >= 2 * C) variance = DB__MAX(v, 0.0);
        if (kind == DB_VARIANCE_LEARNED_RANGE && CP >= 2 * C)
            variance = exp((v + 1) / 2 * log(beta) + (1 - v) / 2 * log(small));
        x[i] = (float)(of_x0 * (double)tr->x0[i] + of_x * (double)x[i] +
                       (db_trajectory_draws(tr, k) ? sqrt(variance) * (double)noise[i] : 0));
    }
}

/* DDIM eq. 12. eps is the network's own; or, use_clipped_model_output, the one that belongs to the
   clipped x0. */
static void db__ddim_step(const db_trajectory *tr, double a_t, double a_n, size_t C, size_t CP,
                          const float *pred, const float *noise, float *x)
{
    db_prediction kind =
        tr->use_clipped_model_output ? DB_PREDICT_SAMPLE : tr->schedule->prediction_type;
    double alpha = sqrt(a_t), sigma = sqrt(1 - a_t),
           sd = (double)tr->eta * sqrt(DB__MAX(0.0, (1 - a_n) / (1 - a_t) * (1 - a_t / a_n)));
    double of_eps = sqrt(DB__MAX(0.0, 1 - a_n - sd * sd));
    size_t i;
    for (i = 0; i < tr->count; i++) {
        double y = (double)pred[i / C * CP + i % C], x_t = (double)x[i], x0 = (double)tr->x0[i];
        double eps = kind == DB_PREDICT_EPSILON ? y
                     : kind == DB_PREDICT_V
                         ? alpha * y + sigma * x_t
                         : (x_t - alpha * (tr->use_clipped_model_output ? x0 : y)) / sigma;
        x[i] = (float)(sqrt(a_n) * x0 + of_eps * eps + (sd > 0 ? sd * (double)noise[i] : 0));
    }
}

/* DPM-Solver++ 2M: h and h_last are steps in lambda = log(alpha / sigma); first order at the first
   step, with solver_order 1 at each, and at the last where sigma becomes 0, with euler_at_final, or
   of fewer than 15 with lower_order_final. */
static void db__dpmsolver_step(const db_trajectory *tr, size_t k, double a_t, double a_n, float *x)
{
    const db_schedule *s = tr->schedule;
    double alpha_n = sqrt(a_n), sigma_n = sqrt(1 - a_n), lambda_t = 0.5 * log(a_t / (1 - a_t)),
           lambda_n = 0.5 * log(a_n / (1 - a_n)), h = lambda_n - lambda_t;
    double shrink = sigma_n / sqrt(1 - a_t), grow = alpha_n * -expm1(-h), of_d1 = 0;
    int final = k + 1 == tr->n &&
                (s->euler_at_final || s->final_sigma_zero || (s->lower_order_final && tr->n < 15));
    size_t i;
    if (k > 0 && s->solver_order == 2 && !final) {
        double a_l = db__alpha_bar(tr, k - 1), h_last = lambda_t - 0.5 * log(a_l / (1 - a_l));
        if (h != 0 && h_last != 0) /* 0: a timestep twice, as many steps as timesteps make it */
            of_d1 = (s->solver_type == DB_SOLVER_HEUN ? alpha_n * (expm1(-h) / h + 1) : grow / 2) *
                h / h_last;
    }
    for (i = 0; i < tr->count; i++)
        x[i] = (float)(shrink * (double)x[i] + grow * (double)tr->x0[i] +
                       of_d1 * ((double)tr->x0[i] - (double)tr->last_x0[i]));
}

db_result db_trajectory_step(db_trajectory *tr, size_t k, size_t B, size_t P, size_t C, size_t CP,
                             const float *pred, const float *noise, float *x)
{
    const db_schedule *s = tr->schedule;
    double a_t, a_n;
    float *swap = tr->last_x0;
    if (s->ctx->result != DB_OK) return s->ctx->result;
    if (k >= tr->n || B * P * C != tr->count)
        return db__fail(s->ctx, DB_ERROR_ARGUMENT,
                        "step %zu of a trajectory of %zu steps, or of another size", k, tr->n);
    if (CP != C && CP != 2 * C)
        return db__fail(s->ctx, DB_ERROR_SHAPE,
                        "a prediction of %zu channels for pictures of %zu: it must have as many or "
                        "twice as many (a learned variance)",
                        CP, C);
    a_t = db__alpha_bar(tr, k), a_n = db__alpha_bar(tr, k + 1);
    if (tr->sampler == DB_SAMPLER_DDIM) {
        size_t stride = s->num_train_timesteps / tr->n;
        a_n = tr->timestep[k] >= stride ? s->alphas_cumprod[tr->timestep[k] - stride]
                                        : db__alpha_bar(tr, tr->n);
    }
    tr->last_x0 = tr->x0, tr->x0 = swap;
    if (db__predict_x0(tr, sqrt(a_t), sqrt(1 - a_t), B, P, C, CP, pred, x) != DB_OK)
        return s->ctx->result;
    if (tr->sampler == DB_SAMPLER_DDPM) db__ddpm_step(tr, k, a_t, a_n, C, CP, pred, noise, x);
    if (tr->sampler == DB_SAMPLER_DDIM) db__ddim_step(tr, a_t, a_n, C, CP, pred, noise, x);
    if (tr->sampler == DB_SAMPLER_DPMSOLVER) db__dpmsolver_step(tr, k, a_t, a_n, x);
    return DB_OK;
}

void db_guide(size_t B, size_t P, size_t C, size_t CP, float scale, float *pred)
{
    size_t k, n = B * P * CP;
    for (k = 0; k < n; k++) {
        float uncond = pred[k], cond = pred[n + k];
        pred[k] = k % CP < C ? uncond + scale * (cond - uncond) : cond;
    }
}

/* ==== [DB-10] Super-resolution ===================================================================

   The later stages of the cascade draw a large image from a small one. The small image is noised
   before the network reads it, and the network is told how much: noise conditioning augmentation
   (Ho et al., 2022; Imagen, section 2.4), which makes it robust to the small image's faults.
   DreamBooth fine-tunes these stages at a *lower* level than usual (first version of the
   paper, section 4.4, supplement): what strong noise hides, a network invents.

   Easy to get wrong
   - The level that conditions the network is the level that was applied.
   - 1e-5 is less noise than the first of the schedule's 1000 levels (4.1e-5): levels are
     continuous here.
   - Upscaling aligns the corners; other conventions shift the image by a fraction of a pixel. */

/* The angle whose sine is sigma: nearly straight in t for the cosine schedule, 0 at level -1. */
static double db__noise_angle(const db_schedule *s, double level)
{
    double last = (double)s->num_train_timesteps - 1, t = DB__MIN(DB__MAX(level, -1.0), last),
           low = floor(t), a, b;
    a = low < 0 ? 0 : asin(sqrt(1 - s->alphas_cumprod[(size_t)low]));
    b = low + 1 > last ? a : asin(sqrt(1 - s->alphas_cumprod[(size_t)(low + 1)]));
    return a + (b - a) * (t - low);
}

/* Refuses a level that the network would be told but the picture not get. */
static db_result db__check_level(const db_schedule *s, double level)
{
    double last = (double)s->num_train_timesteps - 1;
    if (!(level >= -1 && level <= last))
        db__fail(s->ctx, DB_ERROR_ARGUMENT, "a noise level of %g: it must be from -1 to %g", level,
                 last);
    return s->ctx->result;
}

double db_noise_variance(const db_schedule *s, double level)
{
    double sine = sin(db__noise_angle(s, level));
    return sine * sine;
}

double db_noise_level(const db_schedule *s, double variance)
{
    double low = -1, high = (double)s->num_train_timesteps - 1,
           angle = asin(sqrt(DB__MIN(DB__MAX(variance, 0.0), 1.0)));
    int k;
    for (k = 0; k < 60; k++) { /* the angle grows with the level */
        double middle = (low + high) / 2;
        if (db__noise_angle(s, middle) < angle) low = middle;
        else high = middle;
    }
    return (low + high) / 2;
}

void db_downsample(const float *image, size_t H, size_t W, size_t C, size_t factor, float *out)
{
    size_t h = H / factor, w = W / factor, y, x, ch, dy, dx;
    for (y = 0; y < h; y++)
        for (x = 0; x < w; x++)
            for (ch = 0; ch < C; ch++) {
                const float *block = image + (y * factor * W + x * factor) * C + ch;
                float sum = 0;
                for (dy = 0; dy < factor; dy++)
                    for (dx = 0; dx < factor; dx++) sum += block[(dy * W + dx) * C];
                out[(y * w + x) * C + ch] = sum / (float)(factor * factor);
            }
}

void db_condition_low_res(const db_schedule *s, double level, const db_rng *rng, const float *low,
                          size_t h, size_t w, size_t C, size_t H, size_t W, size_t y0, size_t x0,
                          size_t wh, size_t ww, float *out)
{
    float alpha = (float)cos(db__noise_angle(s, level)),
          sigma = (float)sin(db__noise_angle(s, level));
    size_t y, x, ch;
    db_random_normal(rng, wh * ww * C, out);
    for (y = 0; y < wh; y++)
        for (x = 0; x < ww; x++) {
            float fy = H > 1 ? (float)(y0 + y) * (float)(h - 1) / (float)(H - 1) : 0,
                  fx = W > 1 ? (float)(x0 + x) * (float)(w - 1) / (float)(W - 1) : 0;
            size_t iy = (size_t)fy, ix = (size_t)fx, jy = DB__MIN(iy + 1, h - 1),
                   jx = DB__MIN(ix + 1, w - 1);
            float ty = fy - (float)iy, tx = fx - (float)ix, *o = out + (y * ww + x) * C;
            for (ch = 0; ch < C; ch++) {
                float top =
                    low[(iy * w + ix) * C + ch] * (1 - tx) + low[(iy * w + jx) * C + ch] * tx;
                float bottom =
                    low[(jy * w + ix) * C + ch] * (1 - tx) + low[(jy * w + jx) * C + ch] * tx;
                o[ch] = alpha * (top * (1 - ty) + bottom * ty) + sigma * o[ch];
            }
        }
}

/* ==== [DB-11] Sampling and pipelines =============================================================

   A pipeline is a diffusers directory or a single LDM file, opened part by part. db_sample is the
   loop from noise to pictures: predict with and without the prompt, guide (Ho and Salimans, 2022),
   step; in whole pictures or in tiles. db_generate and db_upscale put prompts before it and, of
   latents, the autoencoder behind it.

   Easy to get wrong
   - A picture's noise follows from its own seed, whatever batch or tile it is drawn in.
   - The unconditional half is the negative prompt's encoding, of "" where there is none, and not
     zeros; at guidance 1, and after guidance_stop, there is no such half.
   - A super-resolver meets the noise level twice: in the small picture's channels, noised by
     db_condition_low_res, and as the class label. Both must be the same.                        */

/* What a random stream is for; part of every key. */
enum { DB__FOR_SAMPLE = 1, DB__FOR_SAMPLER_NOISE, DB__FOR_LOW_RES };

db_sample_config db_sample_config_default(void)
{
    db_sample_config c;
    memset(&c, 0, sizeof c);
    c.num_inference_steps = 100;
    c.guidance_scale = 7, c.guidance_stop = 1;
    c.use_clipped_model_output = 1;
    return c;
}

/* The same noise for image b whatever the batch it is drawn in. */
static void db__sample_noise(uint64_t seed, uint32_t purpose, uint32_t step, size_t B, size_t n,
                             float *out)
{
    size_t b;
    for (b = 0; b < B; b++) {
        db_rng rng;
        rng.seed = seed + b, rng.purpose = purpose, rng.step = step;
        db_random_normal(&rng, n, out + b * n);
    }
}

/* Squares along an edge of n pixels that are `side` long and share a quarter with the next. */
static size_t db__tiles(size_t n, size_t side)
{
    return side < n ? DB__CEIL_DIV(n - side, DB__MAX(side - side / 4, (size_t)1)) + 1 : 1;
}

/* Where square k of count begins: the first at 0, the last at the end. */
static size_t db__tile_start(size_t n, size_t side, size_t count, size_t k)
{
    return count > 1 ? k * (n - side) / (count - 1) : 0;
}

/* What a square's prediction counts for at its pixel i of `side`: 1, and less towards an edge that
   another square overlaps. */
static float db__tile_weight(size_t n, size_t start, size_t side, size_t i)
{
    size_t fade = side / 4 + 1, before = start ? i + 1 : fade,
           after = start + side < n ? side - i : fade;
    return (float)DB__MIN(DB__MIN(before, after), fade) / (float)fade;
}

/* The network on a picture, in squares if it is larger than they are. */
typedef struct db__predictor {
    db_tape *tape;
    db_tensor x, time, y; /* [N,h,w,CI], [N] -> [N,h,w,CP]        */
    size_t N, h, w, H, W; /* of a square, of the picture          */
    size_t CI, CP;
    float *in, *out, *sum, *times; /* a square's; [H,W] sums of weights; [N] */
} db__predictor;

/* Room for up to N samples; the tape comes from db__predictor_record. */
static void db__predictor_init(db_ctx *ctx, const db_unet *u, const db_sample_config *config,
                               size_t N, size_t H, size_t W, size_t C, db__predictor *p)
{
    memset(p, 0, sizeof *p);
    p->H = H, p->W = W, p->CI = config->low_res ? 2 * C : C, p->CP = u->config.out_channels;
    p->h = config->tile ? DB__MIN(config->tile, H) : H;
    p->w = config->tile ? DB__MIN(config->tile, W) : W;
    p->in = (float *)db__alloc(ctx, N * p->h * p->w * p->CI, sizeof(float));
    p->out = (float *)db__alloc(ctx, N * p->h * p->w * p->CP, sizeof(float));
    p->sum = (float *)db__alloc(ctx, H * W, sizeof(float));
    p->times = (float *)db__alloc(ctx, N, sizeof(float));
}

static void db__predictor_free(db_ctx *ctx, db__predictor *p)
{
    db_tape_destroy(p->tape);
    db__free(ctx, p->in), db__free(ctx, p->out), db__free(ctx, p->sum), db__free(ctx, p->times);
}

/* The tape for N samples, whose prompts are text [N,T,D], in place of an earlier one. */
static void db__predictor_record(db__predictor *p, db_unet *u, const db_sample_config *config,
                                 const float *text, size_t T, size_t D, size_t N)
{
    db_tensor words, labels = db_none;
    db_tape *t = NULL;
    size_t dim[4], k;
    db_tape_destroy(p->tape), p->tape = NULL;
    if (db_tape_create(u->params.ctx, &t) != DB_OK) return;
    p->tape = t, p->N = N;
    dim[0] = N, dim[1] = p->h, dim[2] = p->w, dim[3] = p->CI;
    p->x = db_input(t, DB_F32, 4, dim), p->time = db_input(t, DB_F32, 1, dim);
    if (u->config.class_embed_timestep) labels = db_input(t, DB_F32, 1, dim);
    dim[1] = T, dim[2] = D;
    words = db_input(t, DB_F32, 3, dim);
    p->y = db_unet_forward(t, u, p->x, p->time, words, labels, NULL);
    db_keep(t, p->y);
    db_upload(t, words, text);
    if (labels.id < 0) return;
    for (k = 0; k < N; k++) p->times[k] = config->noise_level;
    db_upload(t, labels, p->times);
}

/* x [B,H,W,C] beside low_res (or NULL), sample b of N being b % B, to pred [N,H,W,CP]. */
static void db__predict(db__predictor *p, float timestep, const float *x, const float *low_res,
                        size_t B, size_t C, uint64_t seed, uint32_t step, float *pred)
{
    size_t rows = db__tiles(p->H, p->h), columns = db__tiles(p->W, p->w), k, b, i, j, c,
           P = p->H * p->W;
    memset(pred, 0, p->N * P * p->CP * sizeof *pred), memset(p->sum, 0, P * sizeof *p->sum);
    for (b = 0; b < p->N; b++) p->times[b] = timestep;
    db_upload(p->tape, p->time, p->times);
    for (k = 0; k < rows * columns && p->tape->ctx->result == DB_OK; k++) {
        size_t y0 = db__tile_start(p->H, p->h, rows, k / columns),
               x0 = db__tile_start(p->W, p->w, columns, k % columns);
        for (b = 0; b < p->N; b++)
            for (i = 0; i < p->h; i++)
                for (j = 0; j < p->w; j++) {
                    size_t at = ((b % B * p->H + y0 + i) * p->W + x0 + j) * C;
                    float *to = p->in + ((b * p->h + i) * p->w + j) * p->CI;
                    memcpy(to, x + at, C * sizeof *to);
                    if (low_res) memcpy(to + C, low_res + at, C * sizeof *to);
                }
        db_upload(p->tape, p->x, p->in);
        db_run(p->tape, seed, step);
        if (db_download(p->tape, p->y, p->out) != DB_OK) return;
        for (i = 0; i < p->h; i++)
            for (j = 0; j < p->w; j++) {
                size_t at = (y0 + i) * p->W + x0 + j;
                float weight = db__tile_weight(p->H, y0, p->h, i) *
                    db__tile_weight(p->W, x0, p->w, j);
                p->sum[at] += weight;
                for (b = 0; b < p->N; b++)
                    for (c = 0; c < p->CP; c++)
                        pred[(b * P + at) * p->CP + c] +=
                            weight * p->out[((b * p->h + i) * p->w + j) * p->CP + c];
            }
    }
    for (b = 0; b < p->N; b++)
        for (i = 0; i < P; i++)
            for (c = 0; c < p->CP; c++) pred[(b * P + i) * p->CP + c] /= p->sum[i];
}

db_result db_sample(db_unet *u, const db_schedule *s, const db_sample_config *config,
                    const float *text, size_t T, size_t D, size_t B, size_t H, size_t W, size_t C,
                    float *out)
{
    db_ctx *ctx = u->params.ctx;
    size_t P = H * W, CP = u->config.out_channels, n = P * C, k;
    size_t N = config->guidance_scale != 1 ? 2 * B : B, guided = 0; /* steps with guidance */
    float *noise = (float *)db__alloc(ctx, B * n, sizeof(float)),
          *pred = (float *)db__alloc(ctx, N * P * CP, sizeof(float));
    db_trajectory tr;
    db__predictor net;
    memset(&tr, 0, sizeof tr);
    db__predictor_init(ctx, u, config, N, H, W, C, &net);
    if (ctx->result != DB_OK) goto done;
    if (db_trajectory_init(s, config->sampler, config->num_inference_steps, B * n, &tr) != DB_OK)
        goto done;
    tr.eta = config->eta, tr.use_clipped_model_output = config->use_clipped_model_output;
    if (N > B) guided = (size_t)(DB__MIN(DB__MAX(config->guidance_stop, 0), 1) * (float)tr.n);
    if (guided) db__predictor_record(&net, u, config, text, T, D, N);
    if (config->latents) { /* [B,C,H,W] -> [B,H,W,C] */
        for (k = 0; k < B * n; k++) out[k] = config->latents[(k / n * C + k % C) * P + k % n / C];
    } else {
        db__sample_noise(config->seed, DB__FOR_SAMPLE, 0, B, n, out);
    }
    for (k = 0; k < tr.n && ctx->result == DB_OK; k++) {
        if (k == guided) /* from here on the prompts' predictions alone */
            db__predictor_record(&net, u, config, text + B * T * D, T, D, B);
        if (ctx->result != DB_OK) break;
        db__predict(&net, (float)tr.timestep[k], out, config->low_res, B, C, config->seed,
                    (uint32_t)k, pred);
        if (k < guided) db_guide(B, P, C, CP, config->guidance_scale, pred);
        if (db_trajectory_draws(&tr, k))
            db__sample_noise(config->seed, DB__FOR_SAMPLER_NOISE, (uint32_t)k, B, n, noise);
        if (ctx->result == DB_OK) db_trajectory_step(&tr, k, B, P, C, CP, pred, noise, out);
        db__progress(ctx, "sampling", ctx->batches_before * tr.n + k + 1,
                     DB__MAX(ctx->batches, (size_t)1) * tr.n);
    }
    if (ctx->result != DB_OK) goto done;
    if (db__check_numbers(ctx, out, B * n, "a sampled picture") != DB_OK) goto done;
    for (k = 0; k < B * n && !config->latent; k++)
        out[k] = DB__MIN(DB__MAX(out[k], -1.0f), 1.0f);
done:
    db_trajectory_free(&tr);
    db__predictor_free(ctx, &net);
    db__free(ctx, noise);
    db__free(ctx, pred);
    return ctx->result;
}

/* How many tokens a prompt is padded to. */
static size_t db__prompt_tokens(const db_text_encoder *e)
{
    return e->config.kind == DB_TEXT_CLIP ? e->config.max_position_embeddings
                                          : (size_t)DB_PROMPT_TOKENS;
}

/* Lower case, without blanks around; to be freed. */
static char *db__lower(db_ctx *ctx, const char *text)
{
    db__unicode_table table;
    size_t n = strlen(text), i, length, m = 0;
    char *out;
    memset(&table, 0, sizeof table);
    while (n && strchr(" \t\n\r\f\v", text[n - 1])) n--;
    while (n && strchr(" \t\n\r\f\v", *text)) text++, n--;
    out = (char *)db__alloc(ctx, 2 * n + 1, 1); /* two bytes may become three */
    db__unpack_table(ctx, db__unicode_lower, &table);
    for (i = 0; out && ctx->result == DB_OK && i < n; i += length) {
        uint32_t c;
        const db__unicode_row *row;
        length = db__utf8_decode(text + i, n - i, &c);
        row = length ? db__unicode_find(&table, c) : NULL;
        if (length && c == 0x130) { /* the Turkish capital I keeps its dot */
            memcpy(out + m, "i\xCC\x87", 3);
            m += 3;
        } else if (row && (c - row->first) % (uint32_t)row->b == 0) {
            m += db__utf8_encode((uint32_t)((int32_t)c + row->a), out + m);
        } else {
            length = DB__MAX(length, (size_t)1);
            memcpy(out + m, text + i, length);
            m += length;
        }
    }
    db__free(ctx, table.row);
    return out;
}

/* A prompt as its encoder reads it: T ids, and behind them where they are not padding. Training and
   sampling both go through here, so that they cannot differ. */
static db_result db__prompt_ids(const db_text_encoder *e, const db_tokenizer *tok,
                                const char *prompt, size_t T, int32_t *ids, int *was_cut)
{
    char *lower = e->config.kind == DB_TEXT_T5 ? db__lower(tok->ctx, prompt) : NULL;
    if (tok->ctx->result == DB_OK)
        db_tokenize(tok, lower ? lower : prompt, T, ids, ids + T, was_cut);
    db__free(tok->ctx, lower);
    return tok->ctx->result;
}

db_result db_encode(db_text_encoder *e, const db_tokenizer *tok, const char *const *prompts,
                    size_t n, size_t T, float *out, size_t *truncated)
{
    db_ctx *ctx = e->params.ctx;
    size_t dim[2], k, i, cut = 0;
    int32_t *ids = (int32_t *)db__alloc(ctx, T, 2 * sizeof *ids);
    float *mask = (float *)db__alloc(ctx, T, sizeof *mask);
    db_tape *t = NULL;
    db_tensor in, valid, y;
    if (truncated) *truncated = 0;
    if (!ids || !mask || db_tape_create(ctx, &t) != DB_OK) goto done;
    dim[0] = 1, dim[1] = T;
    in = db_input(t, DB_I32, 2, dim),
    valid = e->config.kind == DB_TEXT_T5 ? db_input(t, DB_F32, 2, dim) : db_none;
    y = db_text_forward(t, e, in, valid);
    db_keep(t, y);
    for (k = 0; k < n && ctx->result == DB_OK; k++) {
        int was_cut = 0;
        if (db__prompt_ids(e, tok, prompts[k], T, ids, &was_cut) != DB_OK) break;
        cut += (size_t)was_cut;
        for (i = 0; i < T; i++) mask[i] = ids[T + i] ? 0.0f : -1e9f;
        db_upload(t, in, ids);
        if (valid.id >= 0) db_upload(t, valid, mask);
        db_run(t, 0, 0);
        db_download(t, y, out + k * T * e->config.d_model);
    }
    if (truncated) *truncated = cut;
done:
    db_tape_destroy(t);
    db__free(ctx, ids);
    db__free(ctx, mask);
    return ctx->result;
}

/* ---- pipelines ------------------------------------------------------------------------------- */

/* The files that describe a pipeline; in a single file they are metadata under these very names. */
enum {
    DB__CONFIG_INDEX,
    DB__CONFIG_SCHEDULER,
    DB__CONFIG_TEXT,
    DB__CONFIG_UNET,
    DB__CONFIG_VAE,
    DB__CONFIGS
};
static const char *const db__config_file[DB__CONFIGS] = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "unet/config.json", "vae/config.json"};
struct db__configs {
    char *text[DB__CONFIGS];
};

static void db__configs_free(db_ctx *ctx, struct db__configs *c)
{
    size_t k;
    for (k = 0; c && k < DB__CONFIGS; k++) db__free(ctx, c->text[k]);
    db__free(ctx, c);
}

void db_pipeline_free(db_pipeline *p)
{
    if (!p) return;
    db_tokenizer_free(p->tokenizer);
    db_text_encoder_free(p->text_encoder);
    db_unet_free(p->unet);
    db_vae_free(p->vae);
    db_schedule_free(&p->scheduler);
    db_schedule_free(&p->image_noising);
    db__configs_free(p->ctx, p->single_file);
    db__free(p->ctx, p->directory);
    db__free(p->ctx, p);
}

/* Whether DIRECTORY/NAME is there; its path into `path` [DB__PATH]. */
static int db__part_exists(db_ctx *ctx, char *path, const char *directory, const char *name)
{
    return db__join(ctx, path, directory, name) && db__file_exists(path);
}

void db_pipeline_release(db_pipeline *p, int text_encoder, int vae)
{
    if (p->single_file) return;
    if (text_encoder && p->text_encoder)
        p->released[0] = 1, p->positions = p->text_encoder->config.max_position_embeddings;
    p->released[1] |= vae && p->vae;
    if (text_encoder) db_text_encoder_free(p->text_encoder), p->text_encoder = NULL;
    if (vae) db_vae_free(p->vae), p->vae = NULL;
}

static void db__load_tokenizer(db_pipeline *p)
{
    static const char *const forms[] = {"tokenizer/spiece.model", "tokenizer/vocab.json",
                                        "tokenizer/tokenizer.json"};
    char path[DB__PATH];
    size_t k;
    for (k = 0; k < 3 && !p->tokenizer; k++)
        if (db__part_exists(p->ctx, path, p->directory, forms[k]) &&
            db__join(p->ctx, path, p->directory, "tokenizer"))
            db_tokenizer_load(p->ctx, path, &p->tokenizer);
}

/* What to do with the pipelines that people have and that this is not for: beginnings of their
   class names. */
static void db__refuse_pipeline(db_ctx *ctx, const char *path, const char *kind)
{
    static const char *const known[][2] = {
        {"StableDiffusionXL",
         "Stable Diffusion XL: two text encoders and another U-Net; take a Stable Diffusion 1.x or "
         "2.x model"},
        {"StableDiffusion3",
         "Stable Diffusion 3, a transformer in place of the U-Net; take a Stable Diffusion 1.x or "
         "2.x model"},
        {"StableDiffusionInpaint",
         "an inpainting model, whose U-Net reads a mask; take the model it was made from"},
        {"StableDiffusionUpscale",
         "an upscaler for latents; only DeepFloyd IF's super-resolution is read"},
        {"Flux",
         "FLUX, a transformer in place of the U-Net; take a Stable Diffusion 1.x model or "
         "DeepFloyd IF"}};
    const char *what =
        "not known here; StableDiffusionPipeline, IFPipeline and IFSuperResolutionPipeline are";
    size_t k;
    for (k = 0; k < sizeof known / sizeof *known; k++)
        if (!strncmp(kind, known[k][0], strlen(known[k][0]))) what = known[k][1];
    db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the pipeline \"%s\" is %s", path, kind, what);
}

static void db__load_directory(db_pipeline *p, const char *index_path)
{
    db_ctx *ctx = p->ctx;
    char path[DB__PATH];
    const db_json *index = db_json_load(ctx, index_path);
    const char *kind = db_json_string(index, "_class_name", "");
    const db_json *text = db_json_get(index, "text_encoder");
    int textless = text && text->type == DB_JSON_ARRAY && text->first
        && text->first->type == DB_JSON_NULL;
    int latent =
        !strcmp(kind, "StableDiffusionPipeline") || !strcmp(kind, "StableDiffusionImg2ImgPipeline");
    p->super_resolution = !strcmp(kind, "IFSuperResolutionPipeline");
    if (index && !latent && !p->super_resolution && strcmp(kind, "IFPipeline"))
        db__refuse_pipeline(ctx, index_path, kind);
    db_json_free(index);
    db__load_tokenizer(p);
    if (!textless && db__part_exists(ctx, path, p->directory, db__config_file[DB__CONFIG_TEXT]) &&
        db__join(ctx, path, p->directory, "text_encoder"))
        db_text_encoder_load(ctx, path, &p->text_encoder);
    if (db__join(ctx, path, p->directory, "unet")) db_unet_load(ctx, path, &p->unet);
    if (latent && db__join(ctx, path, p->directory, "vae")) db_vae_load(ctx, path, &p->vae);
    if (db__join(ctx, path, p->directory, db__config_file[DB__CONFIG_SCHEDULER]))
        db_schedule_load(ctx, path, &p->scheduler);
    if (p->tokenizer && p->text_encoder && p->text_encoder->config.kind == DB_TEXT_CLIP &&
        p->text_encoder->config.vocab_size > db_tokenizer_size(p->tokenizer))
        db__log(ctx, DB_LOG_WARNING,
                "%s: the text encoder knows %zu tokens, the vocabulary %zu: tokens added to it "
                "(added_tokens.json) are not read, prompts have them in pieces",
                p->directory, p->text_encoder->config.vocab_size, db_tokenizer_size(p->tokenizer));
    if (p->super_resolution &&
        db__join(ctx, path, p->directory, "image_noising_scheduler/scheduler_config.json"))
        db_schedule_load(ctx, path, &p->image_noising);
}

/* ---- the original layout: one file --------------------------------------------------------------
   CompVis's latent-diffusion ("LDM") numbers the U-Net's layers through: input_blocks.N,
   middle_block.N, output_blocks.N, where diffusers counts levels and layers.

   Easy to get wrong
   - Resamplers count as blocks on the way down and belong to the last block of a level on the
     way up.
   - The autoencoder's levels on the way up are numbered from the largest image.
   - The autoencoder's attention is of 1x1 convolutions: shapes [C,C,1,1]. */

/* The U-Net's parameter as the file has it. */
static int db__ldm_unet_names(const void *config, const char *name, int alternative, char *out)
{
    static const char *const plain[][2] = {{"conv_in.", "input_blocks.0.0."},
                                           {"time_embedding.linear_1.", "time_embed.0."},
                                           {"time_embedding.linear_2.", "time_embed.2."},
                                           {"conv_norm_out.", "out.0."},
                                           {"conv_out.", "out.2."},
                                           {"mid_block.resnets.0.", "middle_block.0."},
                                           {"mid_block.attentions.0.", "middle_block.1."},
                                           {"mid_block.resnets.1.", "middle_block.2."}};
    static const char *const resnet[][2] = {
        {".norm1.", ".in_layers.0."},          {".conv1.", ".in_layers.2."},
        {".time_emb_proj.", ".emb_layers.1."}, {".norm2.", ".out_layers.0."},
        {".conv2.", ".out_layers.3."},         {".conv_shortcut.", ".skip_connection."}};
    const db_unet_config *c = (const db_unet_config *)config;
    unsigned level, layer;
    size_t block, k;
    char part[32], rest[201];
    int down = !strncmp(name, "down_blocks.", 12);
    if (alternative != 1) return 0;
    if (!down && strncmp(name, "up_blocks.", 10)) {
        snprintf(out, DB__NAME, "model.diffusion_model.%s", name);
        db__replace(out, plain, sizeof plain / sizeof *plain);
    } else {
        if (sscanf(name + (down ? 12 : 10), "%u.%31[a-z].%u.%200s", &level, part, &layer, rest) !=
                4 ||
            level >= c->n_levels)
            return 0;
        for (block = down, k = 0; k < level; k++)
            block += c->layers_per_block[down ? k : c->n_levels - 1 - k] + 1;
        if (!strcmp(part, "downsamplers"))
            snprintf(out, DB__NAME, "model.diffusion_model.input_blocks.%zu.0.op.%s",
                     block + c->layers_per_block[level], rest + strlen("conv."));
        else if (!strcmp(part, "upsamplers"))
            snprintf(out, DB__NAME, "model.diffusion_model.output_blocks.%zu.%d.%s",
                     block + c->layers_per_block[c->n_levels - 1 - level],
                     c->up_block_types[level] == DB_BLOCK_CROSS_ATTN ? 2 : 1, rest);
        else
            snprintf(out, DB__NAME, "model.diffusion_model.%s.%zu.%d.%s",
                     down ? "input_blocks" : "output_blocks", block + layer,
                     !strcmp(part, "attentions"), rest);
    }
    if (strstr(name, ".resnets.")) db__replace(out, resnet, sizeof resnet / sizeof *resnet);
    return 1;
}

static int db__ldm_vae_names(const void *config, const char *name, int alternative, char *out)
{
    static const char *const pair[][2] = {{".conv_norm_out.", ".norm_out."},
                                          {".mid_block.resnets.0.", ".mid.block_1."},
                                          {".mid_block.resnets.1.", ".mid.block_2."},
                                          {".mid_block.attentions.0.", ".mid.attn_1."}};
    static const char *const attention[][2] = {{".group_norm.", ".norm."},
                                               {".to_q.", ".q."},
                                               {".to_k.", ".k."},
                                               {".to_v.", ".v."},
                                               {".to_out.0.", ".proj_out."}};
    static const char *const shortcut[][2] = {{".conv_shortcut.", ".nin_shortcut."}};
    const db_vae_config *c = (const db_vae_config *)config;
    unsigned level, layer;
    char part[32], rest[201];
    int down = !strncmp(name, "encoder.down_blocks.", 20);
    if (alternative != 1) return 0;
    if (!down && strncmp(name, "decoder.up_blocks.", 18)) {
        snprintf(out, DB__NAME, "first_stage_model.%s", name);
        if (db__replace(out, pair, 4) && strstr(out, ".attn_1.")) db__replace(out, attention, 5);
        return 1;
    }
    if (sscanf(name + (down ? 20 : 18), "%u.%31[a-z].%u.%200s", &level, part, &layer, rest) != 4 ||
        level >= c->n_levels)
        return 0;
    if (!strcmp(part, "resnets")) snprintf(part, sizeof part, "block.%u", layer);
    else snprintf(part, sizeof part, "%s", down ? "downsample" : "upsample");
    snprintf(out, DB__NAME, "first_stage_model.%s.%zu.%s.%s", down ? "encoder.down" : "decoder.up",
             down ? (size_t)level : c->n_levels - 1 - level, part, rest);
    db__replace(out, shortcut, 1);
    return 1;
}

static int db__ldm_text_names(const void *config, const char *name, int alternative, char *out)
{
    (void)config;
    if (alternative > 2 || (alternative == 2 && strncmp(name, "text_model.", 11))) return 0;
    snprintf(out, DB__NAME, "cond_stage_model.transformer.%s", name + (alternative == 2 ? 11 : 0));
    return 1;
}

/* The tensor PREFIX + a name with up to two numbers in it, if it is there and has `n_dims`
   dimensions. */
static const db_file_tensor *db__ldm_find(const db_safetensors *st, int n_dims, const char *before,
                                          size_t i, const char *between, long j, const char *after)
{
    char name[DB__NAME];
    const db_file_tensor *f;
    if (j < 0) snprintf(name, sizeof name, "%s%zu%s", before, i, between);
    else snprintf(name, sizeof name, "%s%zu%s%ld%s", before, i, between, j, after);
    f = db_safetensors_find(st, name);
    return f && f->n_dims == n_dims ? f : NULL;
}

static size_t db__ldm_dim(const db_safetensors *st, const char *name, int d)
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    return f && d < f->n_dims ? f->dim[d] : 0;
}

/* The configurations of a Stable Diffusion 1.x file that brings none: sizes from its tensors, the
   rest as that family has it (8 heads, 32 groups, epsilon, scaled_linear betas). */
static char *db__ldm_unet_config(db_ctx *ctx, const db_safetensors *st)
{
    static const char in[] = "model.diffusion_model.input_blocks.";
    char channels[200] = "", layers[200] = "", down[400] = "", up[400] = "", copy[400];
    size_t n, level = 0, count = 0, C = 0, first = 0;
    const db_file_tensor *proj =
        db_safetensors_find(st, "model.diffusion_model.middle_block.1.proj_in.weight");
    int attends = 0, uniform = 1, linear = proj && proj->n_dims == 2;
    for (n = 1; level < DB_MAX_LEVELS; n++) {
        const db_file_tensor *conv = db__ldm_find(st, 4, in, n, ".0.out_layers.3.weight", -1, "");
        if (conv) {
            C = conv->dim[0], count++;
            attends |= db__ldm_find(st, 1, in, n, ".1.norm.weight", -1, "") != NULL;
            continue;
        }
        strcpy(copy, up); /* a level is complete; those of the way up come in reverse */
        snprintf(up, sizeof up, "\"%sUpBlock2D\"%s%.300s", attends ? "CrossAttn" : "",
                 level ? ", " : "", copy);
        snprintf(down + strlen(down), sizeof down - strlen(down), "%s\"%sDownBlock2D\"",
                 level ? ", " : "", attends ? "CrossAttn" : "");
        snprintf(channels + strlen(channels), sizeof channels - strlen(channels), "%s%zu",
                 level ? ", " : "", C);
        snprintf(layers + strlen(layers), sizeof layers - strlen(layers), "%s%zu",
                 level ? ", " : "", count);
        first = level ? first : count, uniform = uniform && count == first;
        level++, count = 0, attends = 0;
        if (!db__ldm_find(st, 4, in, n, ".0.op.weight", -1, "")) break;
    }
    if (uniform) snprintf(layers, sizeof layers, "%zu", first); /* as most programs expect it */
    return db__format(
        ctx,
        "{\n  \"_class_name\": \"UNet2DConditionModel\",\n  \"in_channels\": %zu,\n  "
        "\"out_channels\": %zu,\n  \"sample_size\": 64,\n"
        "  \"block_out_channels\": [%s],\n  \"layers_per_block\": %s%s%s,\n  \"down_block_types\": "
        "[%s],\n  \"up_block_types\": [%s],\n"
        "  \"cross_attention_dim\": %zu,\n  \"attention_head_dim\": 8,\n  "
        "\"use_linear_projection\": %s,\n  \"act_fn\": \"silu\",\n"
        "  \"norm_num_groups\": 32,\n  \"norm_eps\": 1e-05,\n  \"flip_sin_to_cos\": true,\n  "
        "\"freq_shift\": 0\n}\n",
        db__ldm_dim(st, "model.diffusion_model.input_blocks.0.0.weight", 1),
        db__ldm_dim(st, "model.diffusion_model.out.2.weight", 0), channels, uniform ? "" : "[",
        layers, uniform ? "" : "]", down, up,
        db__ldm_dim(
            st, "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        linear ? "true" : "false");
}

static char *db__ldm_vae_config(db_ctx *ctx, const db_safetensors *st)
{
    static const char down[] = "first_stage_model.encoder.down.";
    char channels[200] = "", downs[300] = "", ups[300] = "";
    size_t level, layers = 0;
    const db_file_tensor *f;
    for (level = 0; level < DB_MAX_LEVELS &&
                    (f = db__ldm_find(st, 4, down, level, ".block.", 0, ".conv1.weight")) != NULL;
         level++) {
        snprintf(channels + strlen(channels), sizeof channels - strlen(channels), "%s%zu",
                 level ? ", " : "", f->dim[0]);
        snprintf(downs + strlen(downs), sizeof downs - strlen(downs), "%s\"DownEncoderBlock2D\"",
                 level ? ", " : "");
        snprintf(ups + strlen(ups), sizeof ups - strlen(ups), "%s\"UpDecoderBlock2D\"",
                 level ? ", " : "");
    }
    while (layers < 15 && db__ldm_find(st, 4, down, 0, ".block.", (long)layers, ".conv1.weight"))
        layers++;
    return db__format(ctx,
                      "{\n  \"_class_name\": \"AutoencoderKL\",\n  \"in_channels\": %zu,\n  "
                      "\"out_channels\": %zu,\n  \"latent_channels\": %zu,\n"
                      "  \"block_out_channels\": [%s],\n  \"down_block_types\": [%s],\n  "
                      "\"up_block_types\": [%s],\n  \"layers_per_block\": %zu,\n"
                      "  \"act_fn\": \"silu\",\n  \"norm_num_groups\": 32,\n  \"sample_size\": "
                      "512,\n  \"scaling_factor\": 0.18215\n}\n",
                      db__ldm_dim(st, "first_stage_model.encoder.conv_in.weight", 1),
                      db__ldm_dim(st, "first_stage_model.decoder.conv_out.weight", 0),
                      db__ldm_dim(st, "first_stage_model.decoder.conv_in.weight", 1), channels,
                      downs, ups, layers);
}

static char *db__ldm_text_config(db_ctx *ctx, const db_safetensors *st)
{
    static const char prefix[] = "cond_stage_model.transformer.text_model.",
                      bare[] = "cond_stage_model.transformer.";
    char layer[100], name[200];
    size_t layers = 0, D, V, T, F;
    const char *root =
        db_safetensors_find(st, "cond_stage_model.transformer.text_model.final_layer_norm.weight")
            ? prefix
            : bare;
    snprintf(layer, sizeof layer, "%sencoder.layers.", root);
    while (layers < 1000 && db__ldm_find(st, 2, layer, layers, ".mlp.fc1.weight", -1, "")) layers++;
    snprintf(name, sizeof name, "%sembeddings.token_embedding.weight", root),
        V = db__ldm_dim(st, name, 0), D = db__ldm_dim(st, name, 1);
    snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", root),
        T = db__ldm_dim(st, name, 0);
    snprintf(name, sizeof name, "%sencoder.layers.0.mlp.fc1.weight", root),
        F = db__ldm_dim(st, name, 0);
    return db__format(ctx,
                      "{\n  \"architectures\": [\"CLIPTextModel\"],\n  \"model_type\": "
                      "\"clip_text_model\",\n  \"vocab_size\": %zu,\n  \"hidden_size\": %zu,\n"
                      "  \"intermediate_size\": %zu,\n  \"num_hidden_layers\": %zu,\n  "
                      "\"num_attention_heads\": %zu,\n  \"max_position_embeddings\": %zu,\n"
                      "  \"hidden_act\": \"quick_gelu\",\n  \"layer_norm_eps\": 1e-05,\n  "
                      "\"bos_token_id\": 0,\n  \"eos_token_id\": 2,\n  \"pad_token_id\": 1,\n"
                      "  \"projection_dim\": %zu\n}\n",
                      V, D, F, layers, DB__MAX(D / 64, (size_t)1), T, D);
}

static const char db__ldm_index[] =
    "{\n  \"_class_name\": \"StableDiffusionPipeline\",\n  \"feature_extractor\": [null, null],\n  "
    "\"image_encoder\": [null, null],\n"
    "  \"requires_safety_checker\": false,\n  \"safety_checker\": [null, null],\n  \"scheduler\": "
    "[\"diffusers\", \"PNDMScheduler\"],\n"
    "  \"text_encoder\": [\"transformers\", \"CLIPTextModel\"],\n  \"tokenizer\": "
    "[\"transformers\", \"CLIPTokenizer\"],\n"
    "  \"unet\": [\"diffusers\", \"UNet2DConditionModel\"],\n  \"vae\": [\"diffusers\", "
    "\"AutoencoderKL\"]\n}\n";
static const char db__ldm_scheduler[] =
    "{\n  \"_class_name\": \"PNDMScheduler\",\n  \"beta_start\": 0.00085,\n  \"beta_end\": "
    "0.012,\n  \"beta_schedule\": \"scaled_linear\",\n"
    "  \"num_train_timesteps\": 1000,\n  \"prediction_type\": \"epsilon\",\n  "
    "\"set_alpha_to_one\": false,\n  \"skip_prk_steps\": true,\n"
    "  \"steps_offset\": 1,\n  \"clip_sample\": false,\n  \"trained_betas\": null\n}\n";

/* Files that people have and that are no Stable Diffusion 1.x checkpoint: what part of a tensor's
   name gives them away, and what to do. */
static int db__refuse_file(db_ctx *ctx, const char *path, const db_safetensors *st)
{
    static const char *const known[][2] = {
        {"conditioner.embedders.",
         "Stable Diffusion XL: two text encoders and another U-Net. Take a Stable Diffusion 1.x or "
         "2.x model"},
        {"cond_stage_model.model.",
         "Stable Diffusion 2.x with OpenCLIP's own tensor names. Take the model's diffusers "
         "directory, which is read"},
        {"lora_unet_", "a LoRA file, which only changes a model. Give the model it belongs to"},
        {"lora_te_", "a LoRA file, which only changes a model. Give the model it belongs to"},
        {".lora_A.", "a LoRA file, which only changes a model. Give the model it belongs to"},
        {".lora_down.", "a LoRA file, which only changes a model. Give the model it belongs to"},
        {".lora.down.", "a LoRA file, which only changes a model. Give the model it belongs to"},
        {"double_blocks.",
         "FLUX, a transformer in place of the U-Net. Take a Stable Diffusion 1.x model or "
         "DeepFloyd IF"},
        {"joint_blocks.",
         "Stable Diffusion 3, a transformer in place of the U-Net. Take a Stable Diffusion 1.x or "
         "2.x model"},
        {"control_model.", "a ControlNet, which only steers a model. Give the model it belongs to"},
        {"controlnet_cond_embedding.",
         "a ControlNet, which only steers a model. Give the model it belongs to"},
        {"emb_params", "an embedding of Textual Inversion. Give the model it belongs to"},
        {"down_blocks.",
         "one part of a diffusers pipeline. Give the pipeline's directory, the one with "
         "model_index.json"},
        {"text_model.encoder.layers.",
         "one part of a diffusers pipeline. Give the pipeline's directory, the one with "
         "model_index.json"}};
    const char *what = "no Stable Diffusion 1.x checkpoint: it lacks model.diffusion_model., "
                       "first_stage_model. or cond_stage_model.transformer. tensors";
    size_t k, i, found = sizeof known / sizeof *known, has[3] = {0, 0, 0};
    for (i = 0; i < db_safetensors_count(st); i++) {
        const char *name = db_safetensors_at(st, i)->name;
        has[0] |= !strncmp(name, "model.diffusion_model.input_blocks.", 35),
            has[1] |= !strncmp(name, "first_stage_model.", 18);
        has[2] |= !strncmp(name, "cond_stage_model.transformer.", 29);
        for (k = 0; k < found; k++)
            if (strstr(name, known[k][0])) found = k;
    }
    if (has[0] && has[1] && has[2]) {
        if (db__ldm_dim(st, "model.diffusion_model.input_blocks.0.0.weight", 1) ==
            db__ldm_dim(st, "first_stage_model.decoder.conv_in.weight", 1))
            return 0;
        what = "a model whose U-Net reads more than latents (inpainting, image editing). Take the "
               "model it was made from";
    } else if (found < sizeof known / sizeof *known) {
        what = known[found][1];
    }
    db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s is %s", path, what);
    return 1;
}

/* A network of the single file: its configuration's text, its tensors. */
static void *db__ldm_network(db_ctx *ctx, const db__network *kind, const char *what,
                             const char *text, db_safetensors *st, db__names names)
{
    const db_json *j = text ? db_json_parse(ctx, what, text, strlen(text)) : NULL;
    void *config = db__alloc(ctx, 1, kind->config_bytes), *network = NULL;
    if (j && config && db__config_read(ctx, kind, j, what, config) == DB_OK)
        network = db__network_declare(ctx, kind, config);
    if (network)
        db__params_find_in((db_param_table *)network, st, st->shard[0].name, names, config);
    db_json_free(j);
    db__free(ctx, config);
    return network;
}

/* The networks of an open single file. */
static void db__load_single(db_pipeline *p, const char *path, db_safetensors *st)
{
    db_ctx *ctx = p->ctx;
    struct db__configs *c = p->single_file = (struct db__configs *)db__alloc(ctx, 1, sizeof *c);
    const db_json *j;
    size_t k;
    if (!c || db__refuse_file(ctx, path, st)) return;
    for (k = 0; k < DB__CONFIGS; k++) {
        const char *own = db_safetensors_metadata(st, db__config_file[k]);
        c->text[k] = own                           ? db__strdup(ctx, own)
                     : k == DB__CONFIG_INDEX       ? db__strdup(ctx, db__ldm_index)
                     : k == DB__CONFIG_SCHEDULER   ? db__strdup(ctx, db__ldm_scheduler)
                     : k == DB__CONFIG_TEXT        ? db__ldm_text_config(ctx, st)
                     : k == DB__CONFIG_UNET        ? db__ldm_unet_config(ctx, st)
                                                   : db__ldm_vae_config(ctx, st);
    }
    p->text_encoder = (db_text_encoder *)db__ldm_network(
        ctx, &db__text_network, path, c->text[DB__CONFIG_TEXT], st, db__ldm_text_names);
    p->unet = (db_unet *)db__ldm_network(ctx, &db__unet_network, path, c->text[DB__CONFIG_UNET], st,
                                         db__ldm_unet_names);
    p->vae = (db_vae *)db__ldm_network(ctx, &db__vae_network, path, c->text[DB__CONFIG_VAE], st,
                                       db__ldm_vae_names);
    j = c->text[DB__CONFIG_SCHEDULER] ? db_json_parse(ctx, path, c->text[DB__CONFIG_SCHEDULER],
                                                      strlen(c->text[DB__CONFIG_SCHEDULER]))
                                      : NULL;
    if (j) db__schedule_read(ctx, j, path, &p->scheduler);
    db_json_free(j);
    db__load_tokenizer(p);
}

static void db__load_file(db_pipeline *p, const char *path)
{
    db_ctx *ctx = p->ctx;
    db_safetensors *st = NULL;
    unsigned char head[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0}; /* a safetensors file's ninth byte is { */
    FILE *f = fopen(path, "rb");
    size_t got = f ? fread(head, 1, 9, f) : 0;
    if (f) fclose(f);
    if (got >= 4 && (!memcmp(head, "PK\3\4", 4) || (head[0] == 0x80 && head[8] != '{'))) {
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s is a pickle (.ckpt, .bin, .pt), which runs programs when it is opened and is "
                 "not read. Convert it once with "
                 "PyTorch: safetensors.torch.save_file(torch.load(FILE, "
                 "weights_only=True)[\"state_dict\"], \"model.safetensors\")",
                 path);
        return;
    }
    if (got >= 4 && !memcmp(head, "GGUF", 4)) {
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s is a GGUF file of quantised weights. Take the .safetensors file or the "
                 "diffusers directory it was made from",
                 path);
        return;
    }
    if (db_safetensors_open(ctx, path, &st) == DB_OK) db__load_single(p, path, st);
    db_safetensors_close(st);
}

db_result db_pipeline_load(db_ctx *ctx, const char *path, db_pipeline **out)
{
    db_pipeline *p = (db_pipeline *)db__alloc(ctx, 1, sizeof *p);
    char index[DB__PATH], lora[DB__PATH];
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    *out = NULL;
    if (!p) return ctx->result;
    p->ctx = ctx;
    if (db__part_exists(ctx, index, path, "model_index.json")) {
        p->directory = db__strdup(ctx, path);
        db__load_directory(p, index);
    } else if (db__file_exists(path) && dot && (!slash || dot > slash) && strlen(dot) > 1) {
        p->directory =
            slash ? db__format(ctx, "%.*s", (int)(slash - path), path) : db__strdup(ctx, ".");
        db__load_file(p, path);
    } else if (db__part_exists(ctx, lora, path, "pytorch_lora_weights.safetensors") ||
               db__part_exists(ctx, lora, path, "adapter_config.json")) {
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s holds a LoRA, which only changes a model. Give the model it belongs to", path);
    } else {
        db__fail(ctx, DB_ERROR_MISSING,
                 "%s is neither a .safetensors file nor a diffusers pipeline: it has no "
                 "model_index.json",
                 path);
    }
    if (p->vae) /* as diffusers' pipeline mends old files */
        p->scheduler.clip_sample = 0, p->scheduler.steps_offset = 1;
    if (ctx->result == DB_OK && p->vae &&
        (p->vae->config.in_channels != 3 || p->vae->config.out_channels != 3))
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: the autoencoder turns pictures of %zu channels into pictures of %zu, not 3 "
                 "into 3",
                 path, p->vae->config.in_channels, p->vae->config.out_channels);
    if (ctx->result == DB_OK) *out = p;
    else db_pipeline_free(p);
    return ctx->result;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Copies from/name to to/name if it is there. */
static void db__copy_file(db_ctx *ctx, const char *from, const char *to, const char *name)
{
    char source[DB__PATH], target[DB__PATH];
    db__mapping map;
    if (!db__join(ctx, source, from, name) || !db__join(ctx, target, to, name)) return;
    errno = 0;
    if (!db__file_exists(source) && (errno == ENOENT || errno == ENOTDIR)) return;
    if (db__map_file(ctx, source, &map) != DB_OK) return;
    db__write_file(ctx, target, map.data, map.bytes);
    db__unmap_file(ctx, &map);
}

static db_result db__make_directory(db_ctx *ctx, const char *path)
{
#ifdef DB__POSIX
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return DB_OK;
    return db__fail(ctx, DB_ERROR_FILE, "cannot make the folder %s: %s", path, strerror(errno));
#else
    (void)ctx, (void)path;
    return DB_OK; /* the caller makes unet/, text_encoder/ and so on */
#endif
}

/* model_index.json without the parts that are not written (safety checker, watermarker, a text
   encoder that was left out): diffusers takes them as none. */
static char *db__index_text(const db_pipeline *p, const char *text)
{
    static const char *const parts[] = {
        "scheduler", "tokenizer", "unet", "vae", "image_noising_scheduler", "text_encoder"};
    db_ctx *ctx = p->ctx;
    const db_json *index = db_json_parse(ctx, "model_index.json", text, strlen(text)), *item;
    size_t n = sizeof parts / sizeof *parts - (!p->text_encoder && !p->released[0]), k;
    db__text out;
    memset(&out, 0, sizeof out);
    out.ctx = ctx;
    db__text_print(&out, "{");
    for (item = index ? index->first : NULL; item; item = item->next) {
        for (k = 0; k < n && strcmp(item->key, parts[k]); k++) {}
        db__text_print(&out, "%s\n  ", item == index->first ? "" : ",");
        db__text_json_string(&out, item->key);
        db__text_print(&out, ": ");
        if (item->type == DB_JSON_ARRAY && item->count == 2 && k < n &&
            item->first->type == DB_JSON_STRING && item->first->next->type == DB_JSON_STRING) {
            db__text_print(&out, "[");
            db__text_json_string(&out, item->first->string);
            db__text_print(&out, ", ");
            db__text_json_string(&out, item->first->next->string);
            db__text_print(&out, "]");
        } else if (item->type == DB_JSON_ARRAY) db__text_print(&out, "[null, null]");
        else if (item->type == DB_JSON_STRING) db__text_json_string(&out, item->string);
        else db__text_print(&out, "false"); /* requires_safety_checker */
    }
    db_json_free(index);
    db__text_print(&out, "\n}\n");
    if (ctx->result == DB_OK) return out.data;
    db__text_free(&out);
    return NULL;
}

/* scheduler_config.json's text, which is freed, with the posterior's variance in place of a learned
   one; no other entry has such a value. */
static char *db__text_of_fixed_variance(db_ctx *ctx, char *text)
{
    const char *learned = strstr(text, "\"learned"),
               *end = learned ? strchr(learned + 1, '"') : NULL;
    char *fixed;
    if (!end) return text;
    fixed = db__format(ctx, "%.*s\"fixed_small\"%s", (int)(learned - text), text, end + 1);
    db__free(ctx, text);
    return fixed;
}

/* The text of one of the pipeline's .json files as it is written, to be freed; NULL when there is
   none. */
static char *db__config_text(const db_pipeline *p, size_t which)
{
    db_ctx *ctx = p->ctx;
    char path[DB__PATH], *text = NULL, *index;
    db__mapping map;
    if (which == DB__CONFIG_TEXT && !p->text_encoder && !p->released[0]) return NULL;
    if (which == DB__CONFIG_VAE && !p->vae && !p->released[1]) return NULL;
    if (p->single_file) {
        if (p->single_file->text[which]) text = db__strdup(ctx, p->single_file->text[which]);
    } else if (db__part_exists(ctx, path, p->directory, db__config_file[which]) &&
               db__map_file(ctx, path, &map) == DB_OK) {
        text = (char *)db__alloc(ctx, map.bytes + 1, 1);
        if (text) memcpy(text, map.data, map.bytes);
        db__unmap_file(ctx, &map);
    }
    if (text && which == DB__CONFIG_SCHEDULER && p->tuned)
        return db__text_of_fixed_variance(ctx, text);
    if (!text || which != DB__CONFIG_INDEX) return text;
    index = db__index_text(p, text);
    db__free(ctx, text);
    return index;
}

/* The weights of a part that was released, from p's directory to DIRECTORY/FOLDER/BASENAME. */
static void db__copy_weights(const db_pipeline *p, const char *directory, const char *folder,
                             const char *basename)
{
    char path[DB__PATH], name[64];
    db_safetensors *st = NULL;
    db_safetensors_writer *w;
    size_t k;
    snprintf(name, sizeof name, "%s/%s.safetensors", folder, basename);
    if (!db__join(p->ctx, path, p->directory, folder) ||
        db_weights_open(p->ctx, path, basename, &st) != DB_OK ||
        !db__join(p->ctx, path, directory, name)) {
        db_safetensors_close(st);
        return;
    }
    w = db_safetensors_create(p->ctx, path);
    for (k = 0; k < db_safetensors_count(st); k++) {
        const db_file_tensor *f = db_safetensors_at(st, k);
        db_safetensors_declare(w, f->name, f->dtype, f->n_dims, f->dim);
    }
    for (k = 0; k < db_safetensors_count(st); k++) {
        const db_file_tensor *f = db_safetensors_at(st, k);
        db_safetensors_write(w, f->name, f->data);
    }
    db_safetensors_finish(w);
    db_safetensors_close(st);
}

/* Refuses a pipeline, and that of its texts, of which db_pipeline_release has taken what is needed
   to draw or to prepare training. */
static db_result db__all_there(const db_pipeline *p, const db_pipeline *text)
{
    if (p->ctx->result != DB_OK || !(text->released[0] || p->released[1])) return p->ctx->result;
    return db__fail(p->ctx, DB_ERROR_MISSING, "%s: its %s was released; load it again",
                    text->released[0] ? text->directory : p->directory,
                    text->released[0] ? "text encoder" : "autoencoder");
}

/* Every network's weights are about to be written. */
static db_result db__pipeline_fill(const db_pipeline *p)
{
    if (p->text_encoder) db_params_fill(&p->text_encoder->params);
    if (p->vae) db_params_fill(&p->vae->params);
    return db_params_fill(&p->unet->params);
}

db_result db_pipeline_save(const db_pipeline *p, const char *directory, db_dtype dtype)
{
    static const char *const folders[] = {
        "", "unet", "scheduler", "text_encoder", "tokenizer", "image_noising_scheduler", "vae"};
    static const char *const files[] = {"image_noising_scheduler/scheduler_config.json",
                                        "tokenizer/spiece.model",
                                        "tokenizer/vocab.json",
                                        "tokenizer/merges.txt",
                                        "tokenizer/tokenizer.json",
                                        "tokenizer/tokenizer_config.json",
                                        "tokenizer/special_tokens_map.json",
                                        "tokenizer/added_tokens.json"};
    static const char *const weights[] = {"text_encoder/model.safetensors",
                                          "unet/diffusion_pytorch_model.safetensors",
                                          "vae/diffusion_pytorch_model.safetensors"};
    db_ctx *ctx = p->ctx;
    char path[DB__PATH];
    size_t k, positions = 0;
    int needed[7];
    if (ctx->result != DB_OK) return ctx->result;
    needed[0] = needed[1] = needed[2] = 1, needed[3] = p->text_encoder || p->released[0];
    needed[4] = p->tokenizer != NULL;
    needed[5] = p->super_resolution, needed[6] = p->vae || p->released[1];
    for (k = 0; k < 7; k++)
        if (needed[k] && db__join(ctx, path, directory, folders[k])) db__make_directory(ctx, path);
    for (k = 0; k < DB__CONFIGS; k++) {
        char *text = db__config_text(p, k);
        if (text && db__join(ctx, path, directory, db__config_file[k]))
            db__write_file(ctx, path, text, strlen(text));
        db__free(ctx, text);
    }
    for (k = 0; k < sizeof files / sizeof *files; k++)
        if (needed[k ? 4 : 5]) db__copy_file(ctx, p->directory, directory, files[k]);
    if (p->released[0]) positions = p->positions;
    else if (p->text_encoder) positions = p->text_encoder->config.max_position_embeddings;
    if ((p->vae || p->released[1]) && p->tokenizer && positions &&
        !db__part_exists(ctx, path, p->directory, "tokenizer/tokenizer_config.json")) {
        char *text = db__format(
            ctx, "{\n  \"tokenizer_class\": \"CLIPTokenizer\",\n  \"model_max_length\": %zu\n}\n",
            positions);
        if (text && db__join(ctx, path, directory, "tokenizer/tokenizer_config.json"))
            db__write_file(ctx, path, text, strlen(text)); /* else diffusers knows no length */
        db__free(ctx, text);
    }
    db__pipeline_fill(p);
    if (p->text_encoder && db__join(ctx, path, directory, weights[0]))
        db_params_save(&p->text_encoder->params, p->text_encoder->params.data, path, dtype);
    if (db__join(ctx, path, directory, weights[1]))
        db_params_save(&p->unet->params, p->unet->params.data, path, dtype);
    if (p->vae && db__join(ctx, path, directory, weights[2]))
        db_params_save(&p->vae->params, p->vae->params.data, path, dtype);
    if (p->released[0]) db__copy_weights(p, directory, "text_encoder", "model");
    if (p->released[1]) db__copy_weights(p, directory, "vae", "diffusion_pytorch_model");
    for (k = 0; k < 3 && ctx->result == DB_OK; k++) {
        char name[64]; /* of shards that stood there before: diffusers would read it first */
        snprintf(name, sizeof name, "%s.index.json", weights[k]);
        if ((k == 1 || needed[k ? 6 : 3]) && db__join(ctx, path, directory, name)) remove(path);
    }
    return ctx->result;
}

static const char db__lora_file[] = "pytorch_lora_weights.safetensors";

/* Fine-tuning reads the mean that the network predicts and leaves the variance beside it untrained:
   sampling then takes the posterior's, as a model that diffusers' trainer saves does. */
static void db__forget_learned_variance(db_pipeline *p)
{
    db_variance *kind = &p->scheduler.variance_type;
    p->tuned = 1;
    if (*kind == DB_VARIANCE_LEARNED || *kind == DB_VARIANCE_LEARNED_RANGE)
        *kind = DB_VARIANCE_FIXED_SMALL;
}

db_result db_pipeline_load_lora(db_pipeline *p, const char *path)
{
    db_ctx *ctx = p->ctx;
    db_safetensors *st = NULL;
    char file[DB__PATH];
    size_t taken = 0;
    if (!db__part_exists(ctx, file, path, db__lora_file)) snprintf(file, sizeof file, "%s", path);
    if ((p->unet && p->unet->params.lora) || (p->text_encoder && p->text_encoder->params.lora))
        return db__fail(ctx, DB_ERROR_ARGUMENT, "%s: the model has a LoRA already: merge it first",
                        file);
    if (ctx->result != DB_OK || db_safetensors_open(ctx, file, &st) != DB_OK) return ctx->result;
    if (p->unet) taken += db__lora_read(&db__unet_network, &p->unet->params, "unet", st);
    if (p->text_encoder)
        taken += db__lora_read(&db__text_network, &p->text_encoder->params, "text_encoder", st);
    if (ctx->result == DB_OK && taken != db_safetensors_count(st))
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: %zu of %zu tensors are those of a LoRA for this model in diffusers' naming "
                 "(\"unet.\", \"text_encoder.\"); "
                 "a file with other names (lora_unet_...) is to be saved with diffusers' "
                 "save_lora_weights first",
                 file, taken, db_safetensors_count(st));
    if (ctx->result != DB_OK && p->unet) db_lora_remove(&p->unet->params);
    if (ctx->result != DB_OK && p->text_encoder) db_lora_remove(&p->text_encoder->params);
    if (ctx->result == DB_OK) db__forget_learned_variance(p);
    db_safetensors_close(st);
    return ctx->result;
}

db_result db_pipeline_save_lora(const db_pipeline *p, const char *directory, db_dtype dtype)
{
    static const char *const network[2] = {"unet", "text_encoder"};
    db_ctx *ctx = p->ctx;
    const db_lora *lora[2];
    db_safetensors_writer *w;
    char path[DB__PATH], text[1024] = "{";
    size_t length = 1;
    int k, pass;
    lora[0] = p->unet ? p->unet->params.lora : NULL,
    lora[1] = p->text_encoder ? p->text_encoder->params.lora : NULL;
    if (ctx->result != DB_OK) return ctx->result;
    if (!lora[0] && !lora[1])
        return db__fail(ctx, DB_ERROR_ARGUMENT, "the pipeline has no LoRA to save");
    if (db__make_directory(ctx, directory) != DB_OK ||
        !db__join(ctx, path, directory, db__lora_file))
        return ctx->result;
    for (k = 0; k < 2; k++)
        if (lora[k]) length = db__lora_metadata(lora[k], network[k], text, length, sizeof text);
    snprintf(text + length, sizeof text - length, "}");
    w = db_safetensors_create(ctx, path);
    db_safetensors_add_metadata(w, "lora_adapter_metadata", text);
    for (pass = 0; pass < 2; pass++)
        for (k = 0; k < 2; k++)
            if (lora[k])
                db__params_write(w, &lora[k]->params, pass ? lora[k]->params.data : NULL, dtype,
                                 db__lora_names, network[k]);
    return w ? db_safetensors_finish(w) : ctx->result;
}

db_result db_pipeline_save_ldm(const db_pipeline *p, const char *path, db_dtype dtype)
{
    db_ctx *ctx = p->ctx;
    db_safetensors_writer *w;
    size_t k, pass;
    if (db__all_there(p, p) != DB_OK) return ctx->result;
    if (!p->vae || !p->text_encoder || p->text_encoder->config.kind != DB_TEXT_CLIP)
        return db__fail(
            ctx, DB_ERROR_UNSUPPORTED,
            "%s: only Stable Diffusion has a single-file form; save this pipeline as a directory",
            p->directory);
    if (db__pipeline_fill(p) != DB_OK) return ctx->result;
    w = db_safetensors_create(ctx, path);
    for (k = 0; k < DB__CONFIGS; k++) {
        char *text = db__config_text(p, k);
        if (text) db_safetensors_add_metadata(w, db__config_file[k], text);
        db__free(ctx, text);
    }
    for (pass = 0; pass < 2; pass++) {
        const db_param_table *text = &p->text_encoder->params, *unet = &p->unet->params,
                             *vae = &p->vae->params;
        db__params_write(w, text, pass ? text->data : NULL, dtype, db__ldm_text_names,
                         &p->text_encoder->config);
        db__params_write(w, unet, pass ? unet->data : NULL, dtype, db__ldm_unet_names,
                         &p->unet->config);
        db__params_write(w, vae, pass ? vae->data : NULL, dtype, db__ldm_vae_names,
                         &p->vae->config);
    }
    return w ? db_safetensors_finish(w) : ctx->result;
}

/* ---- drawing --------------------------------------------------------------------------------- */

enum { DB__AT_ONCE = 8 }; /* images sampled together, if they are not large */

/* Latents [B,h,w,L] to pictures in [-1,1]. */
static void db__decode_latents(db_vae *v, size_t tile, const float *latents, size_t B, size_t h,
                               size_t w, float *out)
{
    size_t f = db_vae_factor(v), k, n = B * h * f * w * f * v->config.out_channels;
    if (!tile && h * f * w * f > (size_t)1 << 20)
        tile = DB__MAX(v->config.sample_size / f, (size_t)1);
    if (db_vae_decode(v, latents, B, h, w, tile, out) != DB_OK ||
        db__check_numbers(v->params.ctx, out, n, "a decoded picture") != DB_OK)
        return;
    for (k = 0; k < n; k++) out[k] = DB__MIN(DB__MAX(out[k], -1.0f), 1.0f);
}

/* Draws n images in groups; low [n,h,w,3] is the small image of super-resolution, or NULL. */
static db_result db__draw(db_pipeline *p, db_pipeline *text, const char *const *prompts, size_t n,
                          const char *negative, const db_sample_config *config, double level,
                          const float *low, size_t h, size_t w, size_t H, size_t W, float *out)
{
    db_ctx *ctx = p->ctx;
    size_t T, D, from, k, cut, total_cut = 0, negative_cut = 0,
           f = p->vae ? db_vae_factor(p->vae) : 1, C = p->vae ? p->vae->config.latent_channels : 3,
           at_once = H * W > (size_t)512 * 512 ? 1 : DB__AT_ONCE, P;
    float *states, *condition = NULL, *latents = NULL;
    if (db__all_there(p, text) != DB_OK) return ctx->result;
    if (!text->text_encoder || !text->tokenizer)
        return db__fail(ctx, DB_ERROR_MISSING,
                        "%s has no text encoder or no tokenizer; vocab.json and merges.txt of a "
                        "tokenizer belong into %s/tokenizer",
                        text->directory, text->directory);
    if (p->super_resolution && !low)
        return db__fail(ctx, DB_ERROR_ARGUMENT,
                        "%s is a super-resolution pipeline: db_upscale draws with it",
                        p->directory);
    if (H % f || W % f)
        return db__fail(ctx, DB_ERROR_ARGUMENT, "height %zu and width %zu must be multiples of %zu",
                        H, W, f);
    T = db__prompt_tokens(text->text_encoder), D = text->text_encoder->config.d_model;
    P = H / f * (W / f) * C;
    if (p->vae) latents = (float *)db__alloc(ctx, at_once * P, sizeof(float));
    states = (float *)db__alloc(ctx, 2 * at_once * T * D, sizeof(float));
    if (low) condition = (float *)db__alloc(ctx, at_once * H * W * 3, sizeof(float));
    for (from = 0; from < n && ctx->result == DB_OK; from += at_once) {
        size_t B = DB__MIN(n - from, at_once);
        const char *none[DB__AT_ONCE];
        db_sample_config c = *config;
        c.low_res = NULL, c.noise_level = 0;
        for (k = 0; k < B; k++) none[k] = negative ? negative : "";
        db_encode(text->text_encoder, text->tokenizer, none, B, T, states, &negative_cut);
        db_encode(text->text_encoder, text->tokenizer, prompts + from, B, T, states + B * T * D,
                  &cut);
        total_cut += cut;
        c.seed = config->seed + from;
        if (low) {
            for (k = 0; k < B; k++) {
                db_rng rng;
                rng.seed = c.seed + k, rng.purpose = DB__FOR_LOW_RES, rng.step = 0;
                db_condition_low_res(&p->image_noising, level, &rng, low + (from + k) * h * w * 3,
                                     h, w, 3, H, W, 0, 0, H, W, condition + k * H * W * 3);
            }
            c.low_res = condition;
            c.noise_level = (float)level;
        }
        ctx->batches_before = from / at_once, ctx->batches = DB__CEIL_DIV(n, at_once);
        if (config->latents) c.latents = config->latents + from * P;
        c.latent = p->vae != NULL;
        if (ctx->result == DB_OK)
            db_sample(p->unet, &p->scheduler, &c, states, T, D, B, H / f, W / f, C,
                      latents ? latents : out + from * H * W * 3);
        if (ctx->result == DB_OK && latents)
            db__decode_latents(p->vae, config->vae_tile, latents, B, H / f, W / f,
                               out + from * H * W * 3);
        ctx->batches_before = ctx->batches = 0;
    }
    if (total_cut)
        db__log(ctx, DB_LOG_WARNING, "prompts longer than %zu tokens lost their ends: %zu of %zu",
                T, total_cut, n);
    if (negative_cut && config->guidance_scale != 1)
        db__log(ctx, DB_LOG_WARNING, "the negative prompt, longer than %zu tokens, lost its end",
                T);
    db__free(ctx, states);
    db__free(ctx, condition);
    db__free(ctx, latents);
    return ctx->result;
}

db_result db_generate(db_pipeline *p, const char *const *prompts, size_t n, const char *negative,
                      const db_sample_config *config, size_t H, size_t W, float *out)
{
    return db__draw(p, p, prompts, n, negative, config, 0, NULL, 0, 0, H, W, out);
}

db_result db_upscale(db_pipeline *p, db_pipeline *text, const char *const *prompts, size_t n,
                     const char *negative, const db_sample_config *config, double level,
                     const float *low, size_t h, size_t w, size_t H, size_t W, float *out)
{
    if (!p->super_resolution)
        return db__fail(p->ctx, DB_ERROR_ARGUMENT, "%s is not a super-resolution pipeline",
                        p->directory);
    if (!h || !w)
        return db__fail(p->ctx, DB_ERROR_ARGUMENT, "a small picture of %zu x %zu pixels", w, h);
    if (db__check_level(&p->image_noising, level) != DB_OK) return p->ctx->result;
    return db__draw(p, text, prompts, n, negative, config, level, low, h, w, H, W, out);
}

/* ==== [DB-12] DreamBooth =========================================================================

   Paper, section 3.3, eq. 2 (a plain mean squared error of eps means w_t = alpha_t^2 / sigma_t^2 =
   SNR, of x 1, of v SNR + 1):

     E[        w_t  |x_hat(alpha_t  x    + sigma_t  eps,  c   ) - x   |^2
     + lambda  w_t' |x_hat(alpha_t' x_pr + sigma_t' eps', c_pr) - x_pr|^2 ]

   The first term learns the subject from its photos; the second keeps the class: x_pr are the
   original model's own pictures of "a [class]". db_dreambooth_create records the network and its
   loss for both terms' samples in one batch, or for one term's after the other's;
   db_dreambooth_step draws the batches, runs them and moves the weights.

   Easy to get wrong
   - t, eps and the pictures are drawn separately for the two terms; their batches may differ in
     size.
   - Each term is a mean over its own batch before lambda weighs them.
   - w_t (min-SNR) belongs to a sample and its t: the class samples have their own.
   - Latents are drawn anew from the encoder's distribution in each step: means alone would be
     other data.
   - x_pr come from the frozen original weights with the ancestral sampler (DDPM); those of a
     model already fine-tuned would let the class drift along.
   - Super-resolution: the network reads the small photo noised at `noise_level` and is told that
     level, in training as in sampling; both go through db_condition_low_res. */

/* One term of the loss: its pictures, its prompt, its weight. */
typedef struct db__term {
    const char *prompt;
    uint32_t purpose;  /* of its random streams, and the numbers after it                         */
    float lambda;      /* its weight in the loss                                                  */
    size_t B, n;       /* batch; pictures to draw from                                            */
    float **picture;   /* [n] each [h][w][3] in [-1,1]; of a latent model [h][w][2L], means and
                          standard deviations                                                     */
    float **low;       /* super-resolution: [n] each [h/f][w/f][3]                                */
    size_t (*size)[2]; /* [n] h, w                                                                */
    float *text;       /* [T,D]: the prompt's encoding, computed once, if the encoder is frozen   */
    int32_t *tokens;   /* [2T] ids and mask                                                       */
    double loss;       /* of the step, over all its runs                                          */
} db__term;

/* One run of the network: with both terms' samples, or with one's. */
typedef struct db__pass {
    db_tape *tape;
    db__term *term; /* its first       */
    size_t n, B;    /* terms, samples  */
    db_tensor x, eps, alpha, sigma, minus, time, weight, words, ids, mask, low_res, labels;
    db_tensor each, loss;
} db__pass;

/* What a pass of B samples uploads, inside one allocation. */
typedef struct db__batch {
    float *x, *eps, *low;                                  /* [B,S,S,C]                    */
    float *words, *mask;                                   /* [B,T,D], [B,T]               */
    float *alpha, *sigma, *minus, *time, *weight, *labels; /* [B]                          */
    float *w, *each, *offset;                              /* [B], [B], [B,C]: stay here   */
    int32_t *ids;                                          /* [B,T]                        */
} db__batch;

struct db_dreambooth {
    db_ctx *ctx;
    db_pipeline *p, *text;
    db_dreambooth_config config;
    size_t S, C; /* side and channels of what the U-Net reads                    */
    size_t T, D; /* tokens and width of its texts                                */
    db__term term[2]; /* instance; prior */
    db__pass pass[2];
    size_t n_terms, n_passes;
    int latent; /* latent diffusion: pictures are distributions of the autoencoder */
    db_optimizer opt, text_opt;
    size_t lora_changes; /* of the networks, when the tapes were recorded */
    size_t step;
    float *host;
    db__batch batch;
};

/* Random streams of a term: + 0 noise, 1 choice, 2 time, 3 crop, 4 latents, 5 the noise's offset,
   10 + k noise of sample k's small image */
enum { DB__FOR_INSTANCE = 100, DB__FOR_PRIOR = 200, DB__MAX_PAIRS = 90 };

db_dreambooth_config db_dreambooth_config_default(void)
{
    db_dreambooth_config c;
    memset(&c, 0, sizeof c);
    c.prior_loss_weight = 1;
    c.resolution = 64;
    c.train_batch_size = c.class_batch_size = 4;
    c.gradient_accumulation_steps = 1;
    c.max_train_steps = 400;
    c.learning_rate = 5e-6f;
    c.lr_scheduler = DB_LR_CONSTANT;
    c.lr_num_cycles = c.lr_power = 1;
    c.optimizer = db_optimizer_config_default();
    c.noise_level = -1;
    c.upscale = 4;
    return c;
}

uint64_t db_class_image_seed(const char *class_prompt, size_t index)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *class_prompt; class_prompt++) hash = (hash ^ (uint8_t)*class_prompt) * 0x100000001b3u;
    return (hash << 20) + index;
}

/* Weights of the antialiased filter for output i of n_out from n_in: in[first], in[first + 1], ...
   times w[0], w[1], ... over *total. Pillow's, as is the range. w has room for db__filter_width.
   Returns how many. */
static size_t db__filter_weights(db_filter filter, size_t n_in, size_t n_out, size_t i,
                                 size_t *first, double *w, double *total)
{
    double scale = (double)n_in / (double)n_out, stretch = DB__MAX(scale, 1.0),
           center = ((double)i + 0.5) * scale;
    double support = filter == DB_FILTER_BICUBIC ? 2 * stretch : stretch;
    size_t j, last = (size_t)DB__MIN((double)n_in, center + support + 0.5);
    *first = (size_t)DB__MAX(0.0, center - support + 0.5);
    *total = 0;
    for (j = *first; j < last; j++) {
        double x = fabs(((double)j + 0.5 - center) / stretch), y = DB__MAX(0.0, 1 - x);
        if (filter == DB_FILTER_BICUBIC) /* Keys, a = -1/2 */
            y = x < 1   ? (1.5 * x - 2.5) * x * x + 1
                : x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4)
                        : 0;
        w[j - *first] = y;
        *total += y;
    }
    return last - *first;
}

static size_t db__filter_width(size_t n_in, size_t n_out) { return 4 * (n_in / n_out + 1) + 4; }

/* The middle axis of in [outer,n_in,inner] scaled to out [outer,n_out,inner]. */
static void db__resize_axis(db_filter filter, const float *in, size_t outer, size_t n_in,
                            size_t inner, float *out, size_t n_out, double *w)
{
    size_t i, o, c, j, first, n;
    double total;
    for (i = 0; i < n_out; i++) {
        n = db__filter_weights(filter, n_in, n_out, i, &first, w, &total);
        for (o = 0; o < outer; o++)
            for (c = 0; c < inner; c++) {
                double sum = 0;
                for (j = 0; j < n; j++)
                    sum += w[j] * (double)in[(o * n_in + first + j) * inner + c];
                out[(o * n_out + i) * inner + c] = (float)(sum / total);
            }
    }
}

db_result db_resize(db_ctx *ctx, const db_image *image, size_t H, size_t W, float *out)
{
    float *bytes, *narrow;
    double *weights;
    size_t k;
    if (ctx->result != DB_OK) return ctx->result;
    if (!W || !H || !image->w || !image->h)
        return db__fail(ctx, DB_ERROR_ARGUMENT, "a picture of %zu x %zu cannot become %zu x %zu",
                        image->w, image->h, W, H);
    bytes = (float *)db__alloc(ctx, image->h * image->w, 3 * sizeof(float));
    narrow = (float *)db__alloc(ctx, image->h * W, 3 * sizeof(float));
    weights = (double *)db__alloc(
        ctx, DB__MAX(db__filter_width(image->w, W), db__filter_width(image->h, H)), sizeof(double));
    if (bytes && narrow && weights) {
        for (k = 0; k < image->h * image->w * 3; k++) bytes[k] = (float)image->rgb[k] / 127.5f - 1;
        db__resize_axis(DB_FILTER_BILINEAR, bytes, image->h, image->w, 3, narrow, W, weights);
        db__resize_axis(DB_FILTER_BILINEAR, narrow, 1, image->h, W * 3, out, H, weights);
    }
    db__free(ctx, bytes);
    db__free(ctx, narrow);
    db__free(ctx, weights);
    return ctx->result;
}

void db_to_rgb(const float *x, size_t n, uint8_t *rgb)
{
    size_t k;
    for (k = 0; k < n; k++) {
        float v = (x[k] + 1) * 127.5f + 0.5f;
        rgb[k] = (uint8_t)DB__MIN(DB__MAX(v, 0.0f), 255.0f);
    }
}

/* Records |prediction(alpha_t x + sigma_t eps, c) - target|^2 of every sample, and their weighted
   mean. */
static void db__denoising_loss(db_dreambooth *d, db__pass *pass)
{
    db_tape *t = pass->tape;
    db_prediction kind = d->p->scheduler.prediction_type;
    db_tensor x_t, target, pred;
    size_t dim[4];
    dim[0] = pass->B, dim[1] = dim[2] = d->S, dim[3] = d->C;
    pass->x = db_input(t, DB_F32, 4, dim);   /* [B,S,S,C] clean pictures or latents */
    pass->eps = db_input(t, DB_F32, 4, dim); /* noise */
    pass->alpha = db_input(t, DB_F32, 1, dim), pass->sigma = db_input(t, DB_F32, 1, dim); /* [B] */
    pass->minus = db_input(t, DB_F32, 1, dim), pass->time = db_input(t, DB_F32, 1, dim);
    pass->weight = db_input(t, DB_F32, 1, dim);
    pass->ids = pass->mask = pass->low_res = pass->labels = db_none;
    if (d->p->super_resolution) {
        pass->low_res = db_input(t, DB_F32, 4, dim);
        pass->labels = db_input(t, DB_F32, 1, dim);
    }
    dim[1] = d->T, dim[2] = d->D;
    if (d->config.train_text_encoder) {
        db_text_encoder *e = d->text->text_encoder;
        pass->ids = db_input(t, DB_I32, 2, dim);
        if (e->config.kind == DB_TEXT_T5) pass->mask = db_input(t, DB_F32, 2, dim);
        pass->words = db_text_forward(t, e, pass->ids, pass->mask); /* [B,T,D] */
    } else {
        pass->words = db_input(t, DB_F32, 3, dim);
    }
    x_t = db_mix(t, pass->alpha, pass->x, pass->sigma, pass->eps); /* alpha_t x + sigma_t eps */
    if (kind == DB_PREDICT_EPSILON) target = pass->eps;
    else if (kind == DB_PREDICT_SAMPLE) target = pass->x;
    else
        target =
            db_mix(t, pass->alpha, pass->eps, pass->minus, pass->x); /* v = alpha eps - sigma x */
    if (d->p->super_resolution)
        x_t = db_concat(t, db_cast(t, x_t, t->compute), db_cast(t, pass->low_res, t->compute), 3);
    pred = db_unet_forward(t, d->p->unet, x_t, pass->time, pass->words, pass->labels, NULL);
    pass->loss = db_mse(t, pred, target, pass->weight, db_none, &pass->each);
}

/* The factor on the squared error of what the network predicts: 1; or that which makes it
   min(SNR, gamma) |x_hat - x|^2 (Hang et al., 2023, section 3.4), of an infinite gamma the loss in
   eps. */
static float db__loss_weight(const db_schedule *s, double gamma, size_t t)
{
    double snr = s->alphas_cumprod[t] / (1 - s->alphas_cumprod[t]), least = DB__MIN(snr, gamma);
    if (gamma <= 0) return 1;
    switch (s->prediction_type) {
    case DB_PREDICT_EPSILON: return (float)(snr > gamma ? least / snr : 1);
    case DB_PREDICT_V: return (float)(least / (snr + 1));
    default: return (float)least;
    }
}

/* Where torchvision's CenterCrop begins in `room` more pixels than it takes: half of them, halves
   going to the even number. */
static size_t db__middle(size_t room) { return (room + (room % 4 == 3)) / 2; }

/* Draws a term's samples for one run, into the batch from sample `at` on: pictures, crops,
   timesteps, noise; counter-based, so that a resumed run draws the same. */
static void db__draw_samples(db_dreambooth *d, const db__term *term, size_t at, uint32_t run)
{
    size_t S = d->S, C = d->C, P = S * S * C, T = d->T, B = term->B, k, y, i;
    size_t stored = d->latent ? 2 * C : C; /* numbers to a pixel */
    const db_schedule *s = &d->p->scheduler;
    const db__batch *b = &d->batch;
    float *x = b->x + at * P, *eps = b->eps + at * P;
    float *low = d->latent || d->p->super_resolution ? b->low + at * P : NULL;
    db_rng rng;
    rng.seed = d->config.seed, rng.step = run;
    rng.purpose = term->purpose, db_random_normal(&rng, B * P, eps);
    if (d->config.noise_offset != 0) {
        rng.purpose = term->purpose + 5, db_random_normal(&rng, B * C, b->offset);
        for (i = 0; i < B * P; i++) eps[i] += d->config.noise_offset * b->offset[i / P * C + i % C];
    }
    if (d->latent) rng.purpose = term->purpose + 4, db_random_normal(&rng, B * P, low);
    for (k = 0; k < B; k++) {
        size_t which, step_t, h, w, y0, x0;
        rng.purpose = term->purpose + 1, which = db_random_below(&rng, k, (uint32_t)term->n);
        rng.purpose = term->purpose + 2,
        step_t = db_random_below(&rng, k, (uint32_t)s->num_train_timesteps);
        h = term->size[which][0], w = term->size[which][1];
        rng.purpose = term->purpose + 3;
        y0 = d->config.center_crop ? db__middle(h - S)
                                   : db_random_below(&rng, 2 * k, (uint32_t)(h - S + 1));
        x0 = d->config.center_crop ? db__middle(w - S)
                                   : db_random_below(&rng, 2 * k + 1, (uint32_t)(w - S + 1));
        for (y = 0; y < S; y++) {
            const float *row = term->picture[which] + ((y0 + y) * w + x0) * stored;
            float *to = x + k * P + y * S * C;
            if (!d->latent) memcpy(to, row, S * C * sizeof(float));
            for (i = 0; i < S * C && d->latent; i++) {
                const float *moments = row + i / C * stored + i % C;
                to[i] = moments[0] + moments[C] * low[k * P + y * S * C + i];
            }
        }
        if (d->p->super_resolution) { /* the crop's window of the whole small picture, as in
                                         sampling */
            size_t f = d->config.upscale;
            rng.purpose = term->purpose + 10 + (uint32_t)k;
            db_condition_low_res(&d->p->image_noising, d->config.noise_level, &rng,
                                 term->low[which], h / f, w / f, 3, h, w, y0, x0, S, S,
                                 low + k * P);
            b->labels[at + k] = (float)d->config.noise_level;
        }
        db_schedule_coefficients(s, step_t, &b->alpha[at + k], &b->sigma[at + k]);
        b->minus[at + k] = -b->sigma[at + k];
        b->time[at + k] = (float)step_t;
        b->w[at + k] = db__loss_weight(s, (double)d->config.snr_gamma, step_t);
        if (term->text)
            memcpy(b->words + (at + k) * T * d->D, term->text, T * d->D * sizeof(float));
        for (i = 0; i < T && !term->text; i++) {
            b->ids[(at + k) * T + i] = term->tokens[i];
            b->mask[(at + k) * T + i] = term->tokens[T + i] ? 0.0f : -1e9f;
        }
    }
}

/* Eq. 2: draws the samples of a pass, with weights that make the mean over its batch the sum of its
   terms' means, times lambda; and uploads them. */
static void db__draw_batch(db_dreambooth *d, const db__pass *pass, uint32_t run)
{
    db_tape *t = pass->tape;
    const db__batch *b = &d->batch;
    size_t i, k, at = 0;
    for (i = 0; i < pass->n; i++) {
        const db__term *term = &pass->term[i];
        db__draw_samples(d, term, at, run);
        for (k = 0; k < term->B; k++, at++)
            b->weight[at] = b->w[at] * term->lambda * (float)pass->B / (float)term->B;
    }
    db_upload(t, pass->x, b->x), db_upload(t, pass->eps, b->eps);
    db_upload(t, pass->alpha, b->alpha), db_upload(t, pass->sigma, b->sigma);
    db_upload(t, pass->minus, b->minus), db_upload(t, pass->time, b->time);
    db_upload(t, pass->weight, b->weight);
    if (d->p->super_resolution) {
        db_upload(t, pass->low_res, b->low);
        db_upload(t, pass->labels, b->labels);
    }
    if (d->config.train_text_encoder) {
        db_upload(t, pass->ids, b->ids);
        if (pass->mask.id >= 0) db_upload(t, pass->mask, b->mask); /* CLIP has none */
    } else {
        db_upload(t, pass->words, b->words);
    }
}

/* Forward and backward: gradients of eq. 2 add up in the tables, the terms' losses in the terms. */
static void db__run_batches(db_dreambooth *d, uint32_t run)
{
    size_t n, i, k, at;
    if (d->n_passes > 1) { /* one arena in turn */
        size_t larger = d->pass[1].tape->arena_bytes > d->pass[0].tape->arena_bytes;
        if (db__ensure_arena(d->pass[larger].tape) != DB_OK) return;
        d->pass[!larger].tape->arena = d->pass[larger].tape->arena;
    }
    for (n = 0; n < d->n_passes; n++) {
        db__pass *pass = &d->pass[n];
        db__draw_batch(d, pass, run);
        db_run(pass->tape, d->config.seed, run);
        if (db_download(pass->tape, pass->each, d->batch.each) != DB_OK) return;
        for (at = 0, i = 0; i < pass->n; i++)
            for (k = 0; k < pass->term[i].B; k++, at++) {
                double weighted = (double)d->batch.each[at] * (double)d->batch.w[at];
                pass->term[i].loss += weighted / (double)pass->term[i].B;
            }
    }
}

/* Whether diffusers' IF pipelines, which clean prompts unless told not to (their _clean_caption),
   would not leave a word as it is but for its capitals, which they lower in any case: of their
   rules, those on single words. */
static int db__cleaning_alters(const char *word, size_t n)
{
    static const char *const endings[] = {"png", "jpg",  "jpeg", "bmp", "webp",
                                          "eps", "pdf", "apk",  "mp4"};
    static const uint32_t gone[][2] = {
        {0xA1, 0xA1},     {0xA7, 0xA9},     {0xAB, 0xAB},     {0xAE, 0xAE},     {0xB4, 0xB4},
        {0xB7, 0xB7},     {0xBA, 0xBB},     {0xBD, 0xBF},     {0x2018, 0x2019}, {0x201C, 0x201D},
        {0x2022, 0x2022}, {0x2122, 0x2122}, {0x31C0, 0x9FFF}};
    size_t i, k, length;
    for (i = 0; i < n; i += DB__MAX(length, (size_t)1)) { /* characters */
        uint32_t c = 0;
        length = db__utf8_decode(word + i, n - i, &c);
        if (c && c < 0x80 && strchr("#&@~()[]{}|\\/*`<>+%", (int)c)) return 1;
        for (k = 0; k < sizeof gone / sizeof *gone; k++)
            if (c >= gone[k][0] && c <= gone[k][1]) return 1;
    }
    for (i = 0; i < n; i += length) { /* runs of letters and digits */
        char kinds[4] = "";
        size_t runs = 0, letters = 0, digits = 0;
        int plain = 1, kind;
        for (length = 0; i + length < n; length++) {
            unsigned char c = (unsigned char)word[i + length];
            int ascii = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
            if (!ascii && c != '_' && c < 0x80) break;
            plain &= ascii;
            kind = c >= '0' && c <= '9' ? 'd' : 'l';
            letters += kind == 'l', digits += kind == 'd';
            if (!runs || (runs <= 4 && kinds[(runs - 1) & 3] != kind))
                kinds[runs++ & 3] = (char)kind;
        }
        for (k = 0; k < sizeof endings / sizeof *endings && length; k++)
            if (!strncmp(word + i, endings[k], strlen(endings[k]))) return 1;
        if (!length) length = 1, plain = 0;
        if (!plain) continue;
        if (runs == 1 && digits >= 6) return 1;                               /* 123456    */
        if (runs == 2 && kinds[0] == 'l' && letters <= 3 && digits >= 3 && digits <= 15)
            return 1;                                                         /* jc6640    */
        if (runs == 3 || runs > 4 || (runs == 4 && kinds[0] == 'l'))
            return 1; /* jc66vc, 6v2, j2d1a2 */
    }
    return 0;
}

/* Warns of words in the prompt that IF's pipelines elsewhere would lose: the identifier, mostly. */
static void db__check_cleaning(db_ctx *ctx, const char *prompt)
{
    size_t n;
    for (; *prompt; prompt += n) {
        n = strcspn(prompt, " \t\n\r");
        if (db__cleaning_alters(prompt, n))
            db__log(ctx, DB_LOG_WARNING,
                    "diffusers' IF pipelines delete or change \"%.*s\" where they clean prompts: "
                    "give them clean_caption=False, or take another identifier",
                    (int)n, prompt);
        n += prompt[n] != 0;
    }
}

/* The prompt's ids and, while the encoder is frozen, its states. */
static void db__prepare_prompt(db_dreambooth *d, db__term *term)
{
    db_ctx *ctx = d->ctx;
    db_text_encoder *e = d->text->text_encoder;
    int truncated = 0;
    term->tokens = (int32_t *)db__alloc(ctx, 2 * d->T, sizeof(int32_t));
    if (!term->tokens) return;
    db__prompt_ids(e, d->text->tokenizer, term->prompt, d->T, term->tokens, &truncated);
    if (truncated)
        db__log(ctx, DB_LOG_WARNING,
                "the prompt \"%s\" is longer than %zu tokens and loses its end", term->prompt,
                d->T);
    if (e->config.kind == DB_TEXT_T5) db__check_cleaning(ctx, term->prompt);
    if (d->config.train_text_encoder) return;
    term->text = (float *)db__alloc(ctx, d->T * d->D, sizeof(float));
    if (term->text) db_encode(e, d->text->tokenizer, &term->prompt, 1, d->T, term->text, NULL);
}

static void db__term_free(db_ctx *ctx, db__term *term)
{
    size_t k;
    for (k = 0; k < term->n && term->picture; k++) db__free(ctx, term->picture[k]);
    for (k = 0; k < term->n && term->low; k++) db__free(ctx, term->low[k]);
    db__free(ctx, term->picture);
    db__free(ctx, term->low);
    db__free(ctx, term->size);
    db__free(ctx, term->text);
    db__free(ctx, term->tokens);
}

static db_result db__term_init(db_ctx *ctx, db__term *term, const char *prompt, uint32_t purpose,
                               float lambda, size_t B, size_t n)
{
    term->prompt = prompt, term->purpose = purpose, term->lambda = lambda, term->B = B, term->n = n;
    term->picture = (float **)db__alloc(ctx, n, sizeof *term->picture);
    term->low = (float **)db__alloc(ctx, n, sizeof *term->low);
    term->size = (size_t(*)[2])db__alloc(ctx, n, sizeof *term->size);
    return ctx->result;
}

/* Room for picture k of h x w pixels. */
static float *db__term_room(db_dreambooth *d, db__term *term, size_t k, size_t h, size_t w)
{
    term->size[k][0] = h, term->size[k][1] = w;
    term->picture[k] = (float *)db__alloc(d->ctx, h * w, 3 * sizeof(float));
    return term->picture[k];
}

/* The small picture that belongs to picture k, whose sides lose what is not a whole block of it. */
static db_result db__term_pair(db_dreambooth *d, db__term *term, size_t k)
{
    size_t f = d->config.upscale, w = term->size[k][1], h, cut, y;
    float *x = term->picture[k];
    if (!d->p->super_resolution) return DB_OK;
    h = term->size[k][0] / f * f, cut = w / f * f;
    for (y = 0; y < h && cut < w; y++) memmove(x + y * cut * 3, x + y * w * 3, cut * 3 * sizeof *x);
    term->size[k][0] = h, term->size[k][1] = cut;
    term->low[k] = (float *)db__alloc(d->ctx, h / f, cut / f * 3 * sizeof(float));
    if (term->low[k]) db_downsample(x, h, cut, 3, f, term->low[k]);
    return d->ctx->result;
}

/* Replaces picture k by what the autoencoder says of it, scaled as the U-Net has it: each latent's
   mean and standard deviation. With center_crop that of its middle; of the whole, what is no full
   latent at the right and the bottom is lost. */
static db_result db__term_encode(db_dreambooth *d, db__term *term, size_t k)
{
    db_ctx *ctx = d->ctx;
    db_vae *v = d->p->vae;
    size_t f, S = d->config.crop_size, W = term->size[k][1], h = term->size[k][0], w = W, i;
    size_t y0 = 0, x0 = 0;
    float *cut, *moments, scale;
    if (!d->latent) return DB_OK;
    f = db_vae_factor(v), scale = v->config.scaling_factor;
    if (d->config.center_crop) y0 = db__middle(h - S), x0 = db__middle(w - S), h = w = S;
    h = h / f * f, w = w / f * f;
    cut = (float *)db__alloc(ctx, h * w, 3 * sizeof(float));
    moments = (float *)db__alloc(ctx, h / f * (w / f), 2 * d->C * sizeof(float));
    if (cut && moments) {
        db__window(term->picture[k], W, 3, y0, x0, h, w, cut);
        db_vae_encode(v, cut, 1, h, w, moments);
        for (i = 0; i < h / f * (w / f) * 2 * d->C; i++) {
            if (i / d->C % 2) /* a log variance, within diffusers' bounds */
                moments[i] = expf(0.5f * DB__MIN(DB__MAX(moments[i], -30.0f), 20.0f));
            moments[i] *= scale;
        }
    }
    db__free(ctx, cut);
    db__free(ctx, term->picture[k]);
    term->picture[k] = moments, term->size[k][0] = h / f, term->size[k][1] = w / f;
    return ctx->result;
}

/* Records a pass over `n` terms. */
static db_result db__pass_record(db_dreambooth *d, db__pass *pass, db__term *term, size_t n)
{
    size_t k;
    pass->term = term, pass->n = n;
    for (k = 0; k < n; k++) pass->B += term[k].B;
    if (db_tape_create(d->ctx, &pass->tape) != DB_OK) return d->ctx->result;
    pass->tape->checkpoint_blocks = d->config.gradient_checkpointing;
    db__denoising_loss(d, pass);
    if (db_backward(pass->tape, pass->loss) != DB_OK) return d->ctx->result;
    return db_plan(pass->tape, NULL);
}

/* Room on the host for a pass of B samples. */
static void db__batch_init(db_dreambooth *d, size_t B)
{
    db__batch *b = &d->batch;
    size_t P = d->S * d->S * d->C, T = d->T;
    struct {
        float **at;
        size_t count;
    } part[14];
    size_t n = 0, k, total = 0;
    float *at, *ids = NULL;
#define DB__PART(pointer, floats) part[n].at = &(pointer), part[n++].count = (floats)
    DB__PART(b->x, P), DB__PART(b->eps, P);
    DB__PART(b->low, d->latent || d->p->super_resolution ? P : 0);
    DB__PART(b->words, d->config.train_text_encoder ? 0 : T * d->D);
    DB__PART(b->mask, T), DB__PART(ids, T), DB__PART(b->offset, d->C);
    DB__PART(b->alpha, 1), DB__PART(b->sigma, 1), DB__PART(b->minus, 1), DB__PART(b->time, 1);
    DB__PART(b->weight, 1), DB__PART(b->labels, 1), DB__PART(b->w, 1);
#undef DB__PART
    for (k = 0; k < n; k++) total += part[k].count;
    d->host = at = (float *)db__alloc(d->ctx, B, (total + 1) * sizeof(float));
    if (!at) return;
    for (k = 0; k < n; k++) *part[k].at = at, at += B * part[k].count;
    b->each = at, b->ids = (int32_t *)(void *)ids;
}

/* What is trained of a network: its weights, or the LoRA beside them. */
static db_param_table *db__trained(const db_dreambooth *d, db_param_table *network)
{
    return d->config.lora_rank ? &network->lora->params : network;
}

/* How often a LoRA of what the tapes contain was put there or taken away. */
static size_t db__lora_changes(const db_dreambooth *d)
{
    size_t n = d->p->unet->params.lora_changes;
    return d->config.train_text_encoder ? n + d->text->text_encoder->params.lora_changes : n;
}

/* Refuses to go on where tapes and optimiser may look at factors that are there no more. */
static db_result db__still_trained(const db_dreambooth *d)
{
    if (db__lora_changes(d) != d->lora_changes)
        db__fail(d->ctx, DB_ERROR_ARGUMENT,
                 "a LoRA was added, merged or removed since the training was prepared");
    return d->ctx->result;
}

void db_dreambooth_free(db_dreambooth *d)
{
    if (!d) return;
    db__term_free(d->ctx, &d->term[0]);
    db__term_free(d->ctx, &d->term[1]);
    if (d->pass[1].tape && d->pass[0].tape->arena == d->pass[1].tape->arena)
        d->pass[1].tape->arena = NULL;
    db_tape_destroy(d->pass[0].tape);
    db_tape_destroy(d->pass[1].tape);
    db_optimizer_free(&d->opt);
    db_optimizer_free(&d->text_opt);
    db__free(d->ctx, d->host);
    db__free(d->ctx, d);
}

db_result db_dreambooth_create(db_pipeline *p, db_pipeline *text,
                               const db_dreambooth_config *config, const db_image *photos,
                               size_t n_photos, const float *class_images, size_t n_class,
                               db_dreambooth **out)
{
    db_ctx *ctx = p->ctx;
    db_dreambooth *d;
    size_t S = config->resolution, crop = config->crop_size ? config->crop_size : S,
           f = config->upscale, k;
    size_t C, n_encoded = n_photos + (config->class_prompt ? n_class : 0);
    int latent = p->vae != NULL, added[2] = {0, 0}; /* LoRAs that were not there before */
    *out = NULL;
    if (db__all_there(p, text) != DB_OK) return ctx->result;
    if (!n_photos) return db__fail(ctx, DB_ERROR_MISSING, "there are no photos to learn from");
    if (!text->text_encoder || !text->tokenizer)
        return db__fail(ctx, DB_ERROR_MISSING, "%s has no text encoder or no tokenizer",
                        text->directory);
    if (config->class_prompt && (!class_images || !n_class))
        return db__fail(ctx, DB_ERROR_MISSING, "prior preservation needs class images of \"%s\"",
                        config->class_prompt);
    if (!config->instance_prompt || !S || !config->train_batch_size || !config->class_batch_size ||
        !config->gradient_accumulation_steps)
        return db__fail(ctx, DB_ERROR_ARGUMENT,
                        "the instance prompt, the resolution and all batch sizes must be given");
    if (crop > S)
        return db__fail(ctx, DB_ERROR_ARGUMENT,
                        "crops of %zu pixels do not fit photos scaled to %zu", crop, S);
    if (p->super_resolution && (!f || S % f))
        return db__fail(ctx, DB_ERROR_ARGUMENT,
                        "photos scaled to %zu pixels have no whole small image %zu times smaller",
                        S, f);
    if (p->super_resolution && config->class_prompt && config->train_batch_size > DB__MAX_PAIRS)
        return db__fail(ctx, DB_ERROR_UNSUPPORTED,
                        "super-resolution with a class prompt takes batches of at most %d photos: "
                        "gradient_accumulation_steps makes larger ones of several",
                        DB__MAX_PAIRS);
    if (p->super_resolution && db__check_level(&p->image_noising, config->noise_level) != DB_OK)
        return ctx->result;
    if (latent && (S % db_vae_factor(p->vae) || crop % db_vae_factor(p->vae)))
        return db__fail(
            ctx, DB_ERROR_ARGUMENT,
            "resolution %zu and crops of %zu must be multiples of %zu, the pixels to a latent", S,
            crop, db_vae_factor(p->vae));
    C = latent ? p->vae->config.latent_channels : 3;
    if (p->unet->config.in_channels != (p->super_resolution ? 2 * C : C))
        return db__fail(ctx, DB_ERROR_UNSUPPORTED,
                        "%s: a U-Net that reads %zu channels (of masks?) cannot be trained",
                        p->directory, p->unet->config.in_channels);
    d = (db_dreambooth *)db__alloc(ctx, 1, sizeof *d);
    if (!d) return ctx->result;
    d->ctx = ctx, d->p = p, d->text = text, d->config = *config;
    d->config.crop_size = crop;
    d->latent = latent, d->C = C, d->S = latent ? crop / db_vae_factor(p->vae) : crop;
    d->T = db__prompt_tokens(text->text_encoder), d->D = text->text_encoder->config.d_model;
    d->n_terms = config->class_prompt ? 2 : 1;
    if (db__term_init(ctx, &d->term[0], config->instance_prompt, DB__FOR_INSTANCE, 1,
                      config->train_batch_size, n_photos) != DB_OK)
        goto fail;
    for (k = 0; k < n_photos; k++) { /* the shorter side becomes S */
        size_t w = photos[k].w, h = photos[k].h, shorter = DB__MIN(w, h);
        if (!shorter) {
            db__fail(ctx, DB_ERROR_ARGUMENT, "photo %zu is empty", k);
            goto fail;
        }
        h = h * S / shorter, w = w * S / shorter; /* rounded down, as torchvision's Resize does */
        if (!db__term_room(d, &d->term[0], k, h, w)) goto fail;
        if (db_resize(ctx, &photos[k], h, w, d->term[0].picture[k]) != DB_OK) goto fail;
        if (db__term_pair(d, &d->term[0], k) != DB_OK) goto fail;
        if (db__term_encode(d, &d->term[0], k) != DB_OK) goto fail;
        if (latent && db__progress(ctx, "encoding", k + 1, n_encoded) != DB_OK) goto fail;
    }
    if (config->class_prompt) {
        db__term *prior = &d->term[1];
        if (db__term_init(ctx, prior, config->class_prompt, DB__FOR_PRIOR,
                          config->prior_loss_weight, config->class_batch_size, n_class) != DB_OK)
            goto fail;
        for (k = 0; k < n_class; k++) {
            if (!db__term_room(d, prior, k, S, S)) goto fail;
            memcpy(prior->picture[k], class_images + k * S * S * 3, S * S * 3 * sizeof(float));
            if (db__term_pair(d, prior, k) != DB_OK) goto fail;
            if (db__term_encode(d, prior, k) != DB_OK) goto fail;
            if (latent && db__progress(ctx, "encoding", n_photos + k + 1, n_encoded) != DB_OK)
                goto fail;
        }
    }
    if (config->lora_rank) { /* beside those of the pipeline that have none yet */
        float alpha = config->lora_alpha != 0 ? config->lora_alpha : (float)config->lora_rank;
        if ((added[0] = !p->unet->params.lora))
            db_unet_add_lora(p->unet, config->lora_rank, alpha, config->seed);
        if (config->train_text_encoder && (added[1] = !text->text_encoder->params.lora))
            db_text_encoder_add_lora(text->text_encoder, config->lora_rank, alpha, config->seed);
        if (ctx->result != DB_OK) goto fail;
    }
    for (k = 0; k < d->n_terms; k++) db__prepare_prompt(d, &d->term[k]);
    db_optimizer_init(&d->opt, db__trained(d, &p->unet->params), &config->optimizer);
    if (config->train_text_encoder) { /* one norm over both networks' gradients, as
                                         train_dreambooth.py clips */
        db_optimizer_init(&d->text_opt, db__trained(d, &text->text_encoder->params),
                          &config->optimizer);
        d->opt.clipped_with = d->text_opt.params;
        d->text_opt.clipped_with = d->opt.params;
    }
    d->n_passes = config->in_sequence ? d->n_terms : 1;
    for (k = 0; k < d->n_passes; k++)
        if (db__pass_record(d, &d->pass[k], &d->term[k], d->n_terms / d->n_passes) != DB_OK)
            goto fail;
    db__batch_init(d, DB__MAX(d->pass[0].B, d->pass[1].B));
    if (ctx->result != DB_OK) goto fail;
    db__forget_learned_variance(p);
    d->lora_changes = db__lora_changes(d);
    *out = d;
    return DB_OK;
fail:
    db_dreambooth_free(d);
    if (added[0]) db_lora_remove(&p->unet->params);
    if (added[1]) db_lora_remove(&text->text_encoder->params);
    return ctx->result;
}

void db_dreambooth_plan(const db_dreambooth *d, db_memory_plan *plan)
{
    size_t k;
    memset(plan, 0, sizeof *plan);
    if (db__still_trained(d) != DB_OK) return;
    for (k = 0; k < d->n_passes; k++) {
        db_memory_plan one;
        if (db_plan(d->pass[k].tape, &one) != DB_OK) return;
        plan->arena_bytes = DB__MAX(plan->arena_bytes, one.arena_bytes);
        plan->n_operations += one.n_operations * d->config.gradient_accumulation_steps;
        plan->flops += one.flops * (double)d->config.gradient_accumulation_steps;
    }
}
size_t db_dreambooth_steps_done(const db_dreambooth *d) { return d->step; }

db_result db_dreambooth_rehearse(db_dreambooth *d)
{
    size_t k;
    if (db__still_trained(d) != DB_OK) return d->ctx->result;
    for (k = 0; k < d->config.gradient_accumulation_steps; k++) db__run_batches(d, 0);
    return d->ctx->result; /* the next step begins by clearing the gradients */
}

db_result db_dreambooth_step(db_dreambooth *d, db_dreambooth_losses *losses)
{
    db_ctx *ctx = d->ctx;
    const db_dreambooth_config *c = &d->config;
    size_t runs = c->gradient_accumulation_steps, k;
    db_dreambooth_losses l;
    if (db__still_trained(d) != DB_OK) return ctx->result;
    memset(&l, 0, sizeof l);
    d->term[0].loss = d->term[1].loss = 0;
    db_zero_grad(d->opt.params);
    if (c->train_text_encoder) db_zero_grad(d->text_opt.params);
    for (k = 0; k < runs; k++) db__run_batches(d, (uint32_t)(d->step * runs + k));
    l.instance = (float)(d->term[0].loss / (double)runs);
    l.prior = (float)(d->term[1].loss / (double)runs);
    l.total = l.instance + d->term[1].lambda * l.prior;
    if (ctx->result != DB_OK) return ctx->result;
    if (!(fabs((double)l.total) < 1e30))
        return db__fail(ctx, DB_ERROR_NUMERIC,
                        "the loss is not a number at step %zu: lower the learning rate, from the "
                        "beginning or from an earlier checkpoint",
                        d->step + 1);
    l.lr = c->learning_rate *
        (float)db_lr_factor(c->lr_scheduler, (double)c->learning_rate, d->step, c->lr_warmup_steps,
                            c->max_train_steps, c->lr_num_cycles, c->lr_power);
    if (db_optimizer_step(&d->opt, l.lr, 1.0f / (float)runs, &l.grad_norm) != DB_OK)
        return ctx->result;
    if (c->train_text_encoder &&
        db_optimizer_step(&d->text_opt, l.lr, 1.0f / (float)runs, NULL) != DB_OK)
        return ctx->result;
    d->step++;
    if (losses) *losses = l;
    return db__progress(ctx, "training", d->step, c->max_train_steps);
}

/* A piece of the state of training: under which name it is stored, and where it lies. */
typedef struct db__state {
    char name[40];
    db_dtype dtype; /* F32, or U8: the codes of 8-bit moments */
    void *data;
    size_t count;
} db__state;

/* What is trained (weights, or "lora" factors), its moments, and their codes if they have any. */
static size_t db__state_parts(const db_dreambooth *d, db__state part[10])
{
    static const char *const suffix[5] = {"", ".m", ".v", ".m8", ".v8"};
    static const char *const network[2] = {"unet", "text_encoder"};
    const db_optimizer *o[2];
    size_t n = 0, k, i;
    o[0] = &d->opt, o[1] = &d->text_opt;
    for (k = 0; k < 2 && o[k]->params; k++) {
        const size_t count[2] = {o[k]->at[o[k]->params->n], o[k]->at8[o[k]->params->n]};
        void *data[5];
        data[0] = o[k]->params->data, data[1] = o[k]->m, data[2] = o[k]->v, data[3] = o[k]->m8,
        data[4] = o[k]->v8;
        for (i = 0; i < 5 && data[i]; i++, n++) {
            snprintf(part[n].name, sizeof part[n].name, "%s%s%s", network[k],
                     d->config.lora_rank ? ".lora" : "", suffix[i]);
            part[n].dtype = i < 3 ? DB_F32 : DB_U8, part[n].data = data[i];
            part[n].count = i ? count[i > 2] : o[k]->params->count;
        }
    }
    return n;
}

db_result db_dreambooth_save(const db_dreambooth *d, const char *path)
{
    db__state part[10];
    size_t n, k;
    db_safetensors_writer *w;
    char text[32];
    if (db__still_trained(d) != DB_OK) return d->ctx->result;
    n = db__state_parts(d, part);
    w = db_safetensors_create(d->ctx, path);
    snprintf(text, sizeof text, "%zu", d->step);
    db_safetensors_add_metadata(w, "step", text);
    for (k = 0; k < n; k++)
        db_safetensors_declare(w, part[k].name, part[k].dtype, 1, &part[k].count);
    for (k = 0; k < n; k++) db_safetensors_write(w, part[k].name, part[k].data);
    return w ? db_safetensors_finish(w) : d->ctx->result;
}

db_result db_dreambooth_resume(db_dreambooth *d, const char *path)
{
    db__state part[10];
    const char *step;
    size_t n, k;
    db_safetensors *st = NULL;
    if (db__still_trained(d) != DB_OK || db_safetensors_open(d->ctx, path, &st) != DB_OK)
        return d->ctx->result;
    n = db__state_parts(d, part);
    for (k = 0; k < n; k++) {
        const db_file_tensor *f = db_safetensors_find(st, part[k].name);
        if (!f || f->count != part[k].count || f->dtype != part[k].dtype) {
            db__fail(
                d->ctx, DB_ERROR_SHAPE,
                "%s: the state \"%s\" is missing or of another network or another kind of training",
                path, part[k].name);
            break;
        }
    }
    if (d->ctx->result == DB_OK && n != db_safetensors_count(st))
        db__fail(d->ctx, DB_ERROR_SHAPE,
                 "%s: the state has %zu parts, this training has %zu: it trains more, or with "
                 "8-bit moments",
                 path, db_safetensors_count(st), n);
    step = db_safetensors_metadata(st, "step");
    if (d->ctx->result == DB_OK && (!step || *step < '0' || *step > '9'))
        db__fail(d->ctx, DB_ERROR_FORMAT, "%s: it does not say at which step it was saved", path);
    for (k = 0; k < n && d->ctx->result == DB_OK; k++) {
        const db_file_tensor *f = db_safetensors_find(st, part[k].name);
        memcpy(part[k].data, f->data, f->bytes);
    }
    if (d->ctx->result == DB_OK)
        d->step = d->opt.step = d->text_opt.step = (size_t)strtoull(step, NULL, 10);
    db_safetensors_close(st);
    return d->ctx->result;
}

/* ==== [DB-13] Metrics ============================================================================

   Paper, section 4.1 and supplement: subject fidelity by DINO (ViT-S/16) and CLIP-I, prompt
   fidelity by CLIP-T, prior preservation by PRES, diversity by LPIPS.

   Easy to get wrong
   - DINO's embedding is the class token after the last normalisation; the pooler that transformers
     hangs behind it was never trained.
   - Pillow widens its filter when it shrinks, works in integers, and rounds to 8 bits after each
     axis; PyTorch's interpolation does none of this.
   - CLIP normalises before its first block (the files spell it pre_layrnorm), and after its last
     only the class token.
   - A text's vector is at its *first* end marker, since CLIP pads with the same id.
   - PRES compares pictures of the *class* with photos of the *subject*; DIV is of the subject under
     one prompt. The diversity of class pictures is yet another quantity.
   - A photo compared with itself gives 1: pairs within a set are of different pictures.          */

/* ---- preprocessing ------------------------------------------------------------------------- */

/* A length, or {"height": H, "width": W}, or {"shortest_edge": S} (*edge). */
static void db__processor_size(db_ctx *ctx, const db_json *j, const char *key, const char *path,
                               int one_is_edge, size_t *h, size_t *w, size_t *edge)
{
    const db_json *size = db_json_get(j, key);
    if (!size || size->type == DB_JSON_NULL) return;
    *edge = 0;
    if (size->type != DB_JSON_OBJECT) {
        *h = *w = db__config_size(ctx, j, key, path);
        if (one_is_edge) *edge = *h;
    } else if (db_json_get(size, "longest_edge")) {
        db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"%s\" with a longest_edge is not supported", path,
                 key);
    } else if (db_json_get(size, "shortest_edge")) {
        *edge = db__config_size(ctx, size, "shortest_edge", path);
    } else {
        *h = db__config_size(ctx, size, "height", path);
        *w = db__config_size(ctx, size, "width", path);
    }
}

static void db__processor_colours(db_ctx *ctx, const db_json *j, const char *key, const char *path,
                                  float out[3])
{
    const db_json *list = db_json_get(j, key);
    size_t k;
    for (k = 0; list && list->type != DB_JSON_NULL && k < 3; k++) {
        const db_json *v = db_json_at(list, k);
        if (list->count != 3 || !v || v->type != DB_JSON_NUMBER) {
            db__fail(ctx, DB_ERROR_FORMAT, "%s: \"%s\" must list three numbers", path, key);
            return;
        }
        out[k] = (float)v->number;
    }
}

db_result db_image_processor_load(db_ctx *ctx, const char *path, db_image_processor *p)
{
    static const float clip_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f},
                       clip_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    const db_json *j = db_json_load(ctx, path);
    const char *type = db_json_string(j, "image_processor_type",
                                      db_json_string(j, "feature_extractor_type", "?"));
    int clip = !strncmp(type, "CLIP", 4), filter;
    size_t k, edge = 0;
    memset(p, 0, sizeof *p);
    if (j && !clip && strncmp(type, "ViT", 3))
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: the image processor \"%s\" is not supported; those of ViT and CLIP are", path,
                 type);
    p->do_resize = db_json_bool(j, "do_resize", 1);
    p->do_center_crop = db_json_bool(j, "do_center_crop", clip);
    p->do_rescale = db_json_bool(j, "do_rescale", 1);
    p->do_normalize = db_json_bool(j, "do_normalize", 1);
    p->width = p->height = p->crop_width = p->crop_height = 224;
    p->shortest_edge = clip ? 224 : 0;
    db__processor_size(ctx, j, "size", path, clip, &p->height, &p->width, &p->shortest_edge);
    db__processor_size(ctx, j, "crop_size", path, 0, &p->crop_height, &p->crop_width, &edge);
    filter = (int)db_json_int(j, "resample", clip ? DB_FILTER_BICUBIC : DB_FILTER_BILINEAR);
    p->resample = filter == DB_FILTER_BICUBIC ? DB_FILTER_BICUBIC : DB_FILTER_BILINEAR;
    if (filter != (int)p->resample || edge)
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: \"resample\" must be 2 or 3, \"crop_size\" a height and a width", path);
    p->rescale_factor = db_json_number(j, "rescale_factor", 1.0 / 255);
    for (k = 0; k < 3; k++)
        p->image_mean[k] = clip ? clip_mean[k] : 0.5f, p->image_std[k] = clip ? clip_std[k] : 0.5f;
    db__processor_colours(ctx, j, "image_mean", path, p->image_mean);
    db__processor_colours(ctx, j, "image_std", path, p->image_std);
    for (k = 0; k < 3; k++)
        if (!(p->image_std[k] > 0))
            db__fail(ctx, DB_ERROR_FORMAT, "%s: \"image_std\" must be positive", path);
    db_json_free(j);
    return ctx->result;
}

/* db__resize_axis on bytes, as Pillow: weights in units of 2^-22, the sum rounded to a byte. */
static void db__resize_axis_8bit(db_filter filter, const uint8_t *in, size_t outer, size_t n_in,
                                 size_t inner, uint8_t *out, size_t n_out, double *w)
{
    const double unit = 4194304;
    size_t i, o, c, j, first, n;
    double total;
    for (i = 0; i < n_out; i++) {
        n = db__filter_weights(filter, n_in, n_out, i, &first, w, &total);
        for (j = 0; j < n; j++) w[j] = round(w[j] / total * unit);
        for (o = 0; o < outer; o++)
            for (c = 0; c < inner; c++) {
                double sum = unit / 2; /* whole numbers below 2^53: exact */
                for (j = 0; j < n; j++)
                    sum += w[j] * (double)in[(o * n_in + first + j) * inner + c];
                out[(o * n_out + i) * inner + c] =
                    (uint8_t)DB__MAX(0.0, DB__MIN(255.0, floor(sum / unit)));
            }
    }
}

/* The picture scaled to W x H, to be freed. */
static uint8_t *db__scaled_8bit(db_ctx *ctx, db_filter filter, const db_image *image, size_t W,
                                size_t H)
{
    size_t w = image->w, h = image->h;
    uint8_t *narrow = (uint8_t *)db__alloc(ctx, h, 3 * W),
            *scaled = (uint8_t *)db__alloc(ctx, H, 3 * W);
    size_t width = DB__MAX(db__filter_width(w, W), db__filter_width(h, H));
    double *weights = (double *)db__alloc(ctx, width, sizeof(double));
    if (narrow && scaled && weights) {
        db__resize_axis_8bit(filter, image->rgb, h, w, 3, narrow, W, weights);
        db__resize_axis_8bit(filter, narrow, 1, h, W * 3, scaled, H, weights);
    }
    db__free(ctx, narrow);
    db__free(ctx, weights);
    return scaled;
}

db_result db_preprocess(db_ctx *ctx, const db_image_processor *p, const db_image *image, size_t H,
                        size_t W, float *out)
{
    size_t h = image->h, w = image->w, cut_h, cut_w, y, x, c;
    uint8_t *scaled = NULL;
    const uint8_t *from = image->rgb;
    long top = 0, left = 0;
    if (ctx->result != DB_OK) return ctx->result;
    if (!h || !w) return db__fail(ctx, DB_ERROR_ARGUMENT, "a picture of %zu x %zu pixels", w, h);
    if (p->do_resize) {
        size_t shorter = DB__MIN(image->h, image->w);
        h = p->shortest_edge ? p->shortest_edge * image->h / shorter : p->height;
        w = p->shortest_edge ? p->shortest_edge * image->w / shorter : p->width;
    }
    cut_w = p->do_center_crop ? p->crop_width : w, cut_h = p->do_center_crop ? p->crop_height : h;
    if (cut_w != W || cut_h != H)
        return db__fail(ctx, DB_ERROR_SHAPE,
                        "a picture of %zu x %zu pixels becomes %zu x %zu by the "
                        "preprocessor_config, but the network takes %zu x %zu",
                        image->w, image->h, cut_w, cut_h, W, H);
    if (p->do_resize && (!h || !w || (double)h * (double)w > 1e8))
        return db__fail(ctx, DB_ERROR_SHAPE,
                        "a picture of %zu x %zu pixels is scaled to %zu x %zu by the "
                        "preprocessor_config before it is cut; 1 to 1e8 pixels are allowed",
                        image->w, image->h, w, h);
    if (p->do_resize) from = scaled = db__scaled_8bit(ctx, p->resample, image, w, h);
    /* halves are rounded down, also below zero: a small picture stands in a black frame */
    if (p->do_center_crop) {
        top = h >= H ? (long)((h - H) / 2) : -(long)((H - h + 1) / 2);
        left = w >= W ? (long)((w - W) / 2) : -(long)((W - w + 1) / 2);
    }
    for (y = 0; y < H && ctx->result == DB_OK; y++)
        for (x = 0; x < W; x++)
            for (c = 0; c < 3; c++) {
                long sy = (long)y + top, sx = (long)x + left;
                int inside = sy >= 0 && sx >= 0 && sy < (long)h && sx < (long)w;
                float v = inside ? (float)from[((size_t)sy * w + (size_t)sx) * 3 + c] : 0;
                if (p->do_rescale) v = (float)((double)v * p->rescale_factor);
                if (p->do_normalize) v = (v - p->image_mean[c]) / p->image_std[c];
                out[(y * W + x) * 3 + c] = v;
            }
    db__free(ctx, scaled);
    return ctx->result;
}

/* ---- vision transformers ------------------------------------------------------------------------
   Dosovitskiy et al., 2021: patches are tokens, a class token stands before them. DINO: Caron et
   al., 2021. CLIP: Radford et al., 2021.                                                     */

static db_result db__vision_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_vision_config *c = (const db_vision_config *)config;
    if (!c->hidden_size || !c->num_hidden_layers || !c->num_attention_heads ||
        !c->intermediate_size || !c->image_size || !c->patch_size)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: a size of the vision transformer is 0", what);
    if (c->hidden_size % c->num_attention_heads)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu heads do not divide \"hidden_size\" %zu",
                        what, c->num_attention_heads, c->hidden_size);
    if (c->num_hidden_layers > DB__MOST_LAYERS)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"num_hidden_layers\" %zu is more than %d", what,
                        c->num_hidden_layers, DB__MOST_LAYERS);
    if (c->patch_size > c->image_size)
        return db__fail(ctx, DB_ERROR_FORMAT,
                        "%s: \"patch_size\" %zu is larger than \"image_size\" %zu", what,
                        c->patch_size, c->image_size);
    if (c->num_channels != 3)
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: \"num_channels\" %zu; pictures have 3",
                        what, c->num_channels);
    return ctx->result;
}

static void db__vision_config(db_ctx *ctx, const db_json *j, const char *path, int clip,
                              db_vision_config *c)
{
    const char *act;
    c->hidden_size = db__config_size_or(ctx, j, "hidden_size", 768, path);
    c->num_hidden_layers = db__config_size_or(ctx, j, "num_hidden_layers", 12, path);
    c->num_attention_heads = db__config_size_or(ctx, j, "num_attention_heads", 12, path);
    c->intermediate_size = db__config_size_or(ctx, j, "intermediate_size", 3072, path);
    c->image_size = db__config_size_or(ctx, j, "image_size", 224, path);
    c->patch_size = db__config_size_or(ctx, j, "patch_size", clip ? 32 : 16, path);
    c->num_channels = db__config_size_or(ctx, j, "num_channels", 3, path);
    c->layer_norm_eps = (float)db_json_number(j, "layer_norm_eps", clip ? 1e-5 : 1e-12);
    act = db_json_string(j, "hidden_act", clip ? "quick_gelu" : "gelu");
    c->hidden_act = db__activation_named(ctx, act, path);
    c->qkv_bias = clip ? 1 : db_json_bool(j, "qkv_bias", 1);
}

/* Patches, the class token before them, and positions: x [B,S,S,3] -> [B,1+N,D] */
static db_tensor db__patches(db__net *n, const db_vision_config *c, db_tensor x,
                             const char *projection, int bias, db_tensor class_token,
                             db_tensor positions)
{
    db_tape *t = n->tape;
    size_t here = db__enter(n, "%s", projection), D = c->hidden_size, p = c->patch_size, dim[3];
    db_tensor w = db__weight(n, "weight", D, c->num_channels, p, p),
              b = bias ? db__weight(n, "bias", D, 0, 0, 0) : db_none;
    db__leave(n, here);
    if (t->ctx->result != DB_OK) return db_none;
    if (x.n_dims != 4 || x.dim[1] != c->image_size || x.dim[2] != c->image_size) {
        char s[96];
        db__fail(t->ctx, DB_ERROR_SHAPE,
                 "a picture %s for a network of \"image_size\" %zu: positions are not interpolated",
                 db__shape(x, s), c->image_size);
        return db_none;
    }
    x = db_conv2d(t, db_cast(t, x, t->compute), w, b, db_none, p, 0, 0); /* [B,S/p,S/p,D] */
    x = db__shape3(t, x, x.dim[0], x.dim[1] * x.dim[2], D);               /* [B,N,D] */
    dim[0] = x.dim[0], dim[1] = 1, dim[2] = D;
    class_token = db__shape2(t, class_token, 1, D);
    class_token = db_add_rows(t, db_constant(t, t->compute, 0, 3, dim), class_token); /* [B,1,D] */
    return db_add_rows(t, db_concat(t, class_token, x, 1), positions); /* [B,1+N,D] */
}

static size_t db__positions(const db_vision_config *c)
{
    size_t side = c->image_size / c->patch_size;
    return side * side + 1;
}

/* The class token: x [B,T,D] -> [B,D] */
static db_tensor db__first_token(db_tape *t, db_tensor x)
{
    if (t->ctx->result != DB_OK) return db_none;
    return db_slice(t, db__shape2(t, x, x.dim[0], x.dim[1] * x.dim[2]), 0, x.dim[2]);
}

static db_tensor db__vit_record(db__net *n, const db_vision_config *c, db_tensor x)
{
    static const db__layer_names names = {"layernorm_before", "attention.attention.query",
                                          "attention.attention.key", "attention.attention.value",
                                          "attention.output.dense", "layernorm_after",
                                          "intermediate.dense", "output.dense"};
    size_t here = db__enter(n, "embeddings"), l, D = c->hidden_size, T = db__positions(c);
    db_tensor class_token = db__weight(n, "cls_token", 1, 1, D, 0),
              positions = db__weight(n, "position_embeddings", 1, T, D, 0);
    /* [B,T,D] */
    x = db__patches(n, c, x, "patch_embeddings.projection", 1, class_token, positions);
    db__leave(n, here);
    for (l = 0; l < c->num_hidden_layers; l++) {
        here = db__enter(n, "encoder.layer.%zu", l);
        x = db__transformer_layer(n, &names, x, c->num_attention_heads, c->intermediate_size,
                                  c->layer_norm_eps, c->hidden_act, c->qkv_bias, db_none, 0);
        db__leave(n, here);
    }
    /* [B,D] */
    return db__layer_norm_layer(n, "layernorm", db__first_token(n->tape, x), c->layer_norm_eps);
}

static db_tensor db__clip_image_record(db__net *n, const db_clip_config *config, db_tensor x)
{
    const db_vision_config *c = &config->vision;
    size_t root = db__enter(n, "vision_model"), here = db__enter(n, "embeddings"), l,
           D = c->hidden_size, T = db__positions(c);
    db_tensor class_token = db__weight(n, "class_embedding", D, 0, 0, 0),
              positions = db__weight(n, "position_embedding.weight", T, D, 0, 0);
    x = db__patches(n, c, x, "patch_embedding", 0, class_token, positions); /* [B,T,D] */
    db__leave(n, here);
    x = db__layer_norm_layer(n, "pre_layrnorm", x, c->layer_norm_eps);
    for (l = 0; l < c->num_hidden_layers; l++) {
        here = db__enter(n, "encoder.layers.%zu", l);
        x = db__transformer_layer(n, &db__clip_names, x, c->num_attention_heads,
                                  c->intermediate_size, c->layer_norm_eps, c->hidden_act, 1,
                                  db_none, 0);
        db__leave(n, here);
    }
    /* [B,D] */
    x = db__layer_norm_layer(n, "post_layernorm", db__first_token(n->tape, x), c->layer_norm_eps);
    db__leave(n, root);
    /* [B,P] */
    return db__linear_layer(n, "visual_projection", x, config->projection_dim, 0, db_none);
}

static db_tensor db__clip_pooled_record(db__net *n, const db_clip_config *c, db_tensor ids,
                                        db_tensor ends)
{
    db_tensor x = db__clip_text_record(n, &c->text, ids, db_none); /* [B,T,D] */
    if (n->tape->ctx->result != DB_OK) return db_none;
    x = db_cast(n->tape, x, DB_F32);
    /* [B,1,D]: the rows at the ends */
    x = db_embedding(n->tape, ends, db__shape2(n->tape, x, x.dim[0] * x.dim[1], x.dim[2]));
    x = db__shape2(n->tape, x, x.dim[0], x.dim[2]);
    return db__linear_layer(n, "text_projection", x, c->projection_dim, 0, db_none); /* [B,P] */
}

/* An input [1,S,S,3] to declare a network with. */
static db_tensor db__declared_image(db__net *n, size_t S)
{
    size_t dim[4];
    dim[0] = 1, dim[1] = dim[2] = S, dim[3] = 3;
    return db_input(n->tape, DB_F32, 4, dim);
}

static db__net db__net_of(db_tape *t, db_param_table *params)
{
    db__net n;
    memset(&n, 0, sizeof n);
    n.tape = t, n.params = params;
    return n;
}

/* ---- ViT ---- */

static db_result db__vit_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    const char *type = db_json_string(j, "model_type", "?");
    if (strcmp(type, "vit"))
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the model_type \"%s\"; DINO is a \"vit\"",
                        path, type);
    db__vision_config(ctx, j, path, 0, (db_vision_config *)config);
    return ctx->result;
}

static void db__vit_declare(db__net *n, const void *config)
{
    const db_vision_config *c = (const db_vision_config *)config;
    db__vit_record(n, c, db__declared_image(n, c->image_size));
}

static const db__network db__vit_network = {sizeof(db_vit), offsetof(db_vit, config),
                                            sizeof(db_vision_config), "model", db__vit_parse,
                                            db__vision_check, db__vit_declare, NULL};

db_result db_vit_config_load(db_ctx *ctx, const char *path, db_vision_config *out)
{
    return db__config_load(ctx, &db__vit_network, path, out);
}

db_result db_vit_create(db_ctx *ctx, const db_vision_config *config, db_vit **out)
{
    *out = (db_vit *)db__network_create(ctx, &db__vit_network, config, "db_vit_create");
    return ctx->result;
}

db_result db_vit_load(db_ctx *ctx, const char *directory, db_vit **out)
{
    char path[DB__PATH];
    *out = (db_vit *)db__network_load(ctx, &db__vit_network, directory);
    if (*out && db__join(ctx, path, directory, "preprocessor_config.json"))
        db_image_processor_load(ctx, path, &(*out)->processor);
    if (ctx->result != DB_OK) db_vit_free(*out), *out = NULL;
    return ctx->result;
}

void db_vit_free(db_vit *m) { db__network_free(m); }

db_tensor db_vit_forward(db_tape *t, db_vit *m, db_tensor x)
{
    db__net n = db__net_of(t, &m->params);
    return db__vit_record(&n, &m->config, x);
}

/* ---- CLIP ---- */

static db_result db__clip_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    db_clip_config *c = (db_clip_config *)config;
    const char *type = db_json_string(j, "model_type", "?");
    const db_json *text = db_json_get(j, "text_config"), *vision = db_json_get(j, "vision_config");
    c->projection_dim = db__config_size_or(ctx, j, "projection_dim", 512, path);
    if (!strcmp(type, "clip_vision_model")) {
        db__vision_config(ctx, j, path, 1, &c->vision);
    } else if (!strcmp(type, "clip")) {
        if (!text || !vision || text->type != DB_JSON_OBJECT || vision->type != DB_JSON_OBJECT)
            return db__fail(ctx, DB_ERROR_FORMAT,
                            "%s: \"text_config\" and \"vision_config\" must be there", path);
        db__vision_config(ctx, vision, path, 1, &c->vision);
        db__clip_text_config(ctx, text, path, &c->text);
        c->eos_token_id = db_json_int(text, "eos_token_id", 49407);
    } else {
        db__fail(ctx, DB_ERROR_UNSUPPORTED,
                 "%s: the model_type \"%s\" is not supported; clip and clip_vision_model are", path,
                 type);
    }
    return ctx->result;
}

static db_result db__clip_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_clip_config *c = (const db_clip_config *)config;
    if (!c->projection_dim)
        return db__fail(ctx, DB_ERROR_FORMAT, "%s: \"projection_dim\" is 0", what);
    if (c->text.num_layers && db__text_check(ctx, &c->text, what) != DB_OK) return ctx->result;
    return db__vision_check(ctx, &c->vision, what);
}

static void db__clip_declare(db__net *n, const void *config)
{
    const db_clip_config *c = (const db_clip_config *)config;
    size_t dim[2] = {1, 1};
    db__clip_image_record(n, c, db__declared_image(n, c->vision.image_size));
    if (!c->text.num_layers) return;
    db__clip_pooled_record(n, c, db_input(n->tape, DB_I32, 2, dim),
                           db_input(n->tape, DB_I32, 2, dim));
    /* of the contrastive loss: kept so that what is saved is whole */
    db__weight(n, "logit_scale", 0, 0, 0, 0);
}

static const db__network db__clip_network = {sizeof(db_clip), offsetof(db_clip, config),
                                             sizeof(db_clip_config), "model", db__clip_parse,
                                             db__clip_check, db__clip_declare, NULL};

db_result db_clip_config_load(db_ctx *ctx, const char *path, db_clip_config *out)
{
    return db__config_load(ctx, &db__clip_network, path, out);
}

db_result db_clip_create(db_ctx *ctx, const db_clip_config *config, db_clip **out)
{
    *out = (db_clip *)db__network_create(ctx, &db__clip_network, config, "db_clip_create");
    return ctx->result;
}

db_result db_clip_load(db_ctx *ctx, const char *directory, db_clip **out)
{
    char path[DB__PATH];
    *out = (db_clip *)db__network_load(ctx, &db__clip_network, directory);
    if (*out && db__join(ctx, path, directory, "preprocessor_config.json"))
        db_image_processor_load(ctx, path, &(*out)->processor);
    if (*out && (*out)->config.text.num_layers)
        db_tokenizer_load(ctx, directory, &(*out)->tokenizer);
    if (ctx->result != DB_OK) db_clip_free(*out), *out = NULL;
    return ctx->result;
}

void db_clip_free(db_clip *m)
{
    if (m) db_tokenizer_free(m->tokenizer);
    db__network_free(m);
}

db_tensor db_clip_image_forward(db_tape *t, db_clip *m, db_tensor x)
{
    db__net n = db__net_of(t, &m->params);
    return db__clip_image_record(&n, &m->config, x);
}

db_tensor db_clip_text_forward(db_tape *t, db_clip *m, db_tensor ids, db_tensor ends)
{
    db__net n = db__net_of(t, &m->params);
    if (m->config.text.num_layers) return db__clip_pooled_record(&n, &m->config, ids, ends);
    db__fail(t->ctx, DB_ERROR_MISSING,
             "this CLIP has no text tower: its config.json is a clip_vision_model's");
    return db_none;
}

size_t db_clip_end(const db_clip *m, const int32_t *ids, size_t T)
{
    size_t k, best = 0;
    for (k = 0; k < T; k++) {
        if (m->config.eos_token_id == 2 ? ids[k] > ids[best] : ids[k] == m->config.eos_token_id) {
            best = k;
            if (m->config.eos_token_id != 2) break;
        }
    }
    return best;
}

/* ---- LPIPS --------------------------------------------------------------------------------------
   d(x,y) = sum over layers, mean over pixels, of sum_c w_c (f_c(x)/|f(x)| - f_c(y)/|f(y)|)^2     */

/* x [B,H,W,3] -> for each layer [B,pixels,C], vectors of length 1 */
static void db__lpips_features(db__net *n, const db_lpips_config *c, db_tensor x,
                               db_tensor feature[DB_LPIPS_LAYERS])
{
    db_tape *t = n->tape;
    /* index: in torchvision's list of convolutions, ReLUs and pools */
    size_t l, index = 0, here, IC = 3;
    for (l = 0; l < DB_LPIPS_LAYERS; l++) feature[l] = db_none;
    x = db_cast(t, x, t->compute);
    for (l = 0; l < DB_LPIPS_LAYERS && t->ctx->result == DB_OK; l++) {
        db_tensor w, b;
        if (c->pool[l]) x = db_max_pool(t, x, 3, 2), index++;
        here = db__enter(n, "features.%zu", index);
        w = db__weight(n, "weight", c->channels[l], IC, c->kernel_size[l], c->kernel_size[l]);
        b = db__weight(n, "bias", c->channels[l], 0, 0, 0);
        db__leave(n, here);
        x = db_conv2d(t, x, w, b, db_none, c->stride[l], c->padding[l], c->padding[l]);
        x = db_activate(t, x, DB_ACT_RELU); /* [B,H',W',C] */
        if (t->ctx->result != DB_OK) return;
        feature[l] = db_unit_norm(t, db__shape3(t, x, x.dim[0], x.dim[1] * x.dim[2], x.dim[3]));
        index += 2, IC = c->channels[l];
    }
}

/* Features of two batches -> distances [B,1] */
static db_tensor db__lpips_distance(db__net *n, const db_tensor a[DB_LPIPS_LAYERS],
                                    const db_tensor b[DB_LPIPS_LAYERS])
{
    db_tape *t = n->tape;
    db_tensor total = db_none;
    size_t l;
    for (l = 0; l < DB_LPIPS_LAYERS; l++) {
        size_t here = db__enter(n, "lin%zu.model.1", l);
        db_tensor w = db__weight(n, "weight", 1, a[l].dim[2], 1, 1), d;
        d = db_weighted_sum(t, 1, a[l], -1, b[l]);                     /* [B,pixels,C] */
        d = db_linear(t, db_multiply(t, d, d), w, db_none, db_none); /* [B,pixels,1] */
        d = db__shape2(t, db_mean_tokens(t, d), a[l].dim[0], 1);
        total = l ? db_weighted_sum(t, 1, total, 1, d) : d;
        db__leave(n, here);
    }
    return total;
}

static db_tensor db__lpips_record(db__net *n, const db_lpips_config *c, db_tensor x, db_tensor y)
{
    db_tensor a[DB_LPIPS_LAYERS], b[DB_LPIPS_LAYERS];
    db__lpips_features(n, c, x, a);
    db__lpips_features(n, c, y, b);
    return db__lpips_distance(n, a, b);
}

static db_result db__lpips_parse(db_ctx *ctx, const db_json *j, const char *path, void *config)
{
    static const char *const keys[] = {"channels", "kernel_size", "stride", "padding", "pool"};
    static const size_t alex[][DB_LPIPS_LAYERS] = {{64, 192, 384, 256, 256}, {11, 5, 3, 3, 3},
                                                   {4, 1, 1, 1, 1}, {2, 2, 1, 1, 1},
                                                   {0, 1, 1, 0, 0}};
    db_lpips_config *c = (db_lpips_config *)config;
    size_t *const lists[] = {c->channels, c->kernel_size, c->stride, c->padding, c->pool};
    const char *type = db_json_string(j, "model_type", "?");
    size_t k;
    if (strcmp(type, "lpips"))
        return db__fail(ctx, DB_ERROR_UNSUPPORTED, "%s: the model_type \"%s\" is not \"lpips\"",
                        path, type);
    for (k = 0; k < 5; k++) {
        memcpy(lists[k], alex[k], sizeof alex[k]);
        if (db_json_get(j, keys[k]))
            db__per_level(ctx, j, keys[k], path, DB_LPIPS_LAYERS, 0, lists[k]);
    }
    return ctx->result;
}

enum { DB__LPIPS_LEAST = 64 }; /* pixels a side, of which something must be left in every layer */

static db_result db__lpips_check(db_ctx *ctx, const void *config, const char *what)
{
    const db_lpips_config *c = (const db_lpips_config *)config;
    size_t l, side = DB__LPIPS_LEAST;
    for (l = 0; l < DB_LPIPS_LAYERS; l++) {
        if (c->pool[l]) side = side < 3 ? 0 : (side - 3) / 2 + 1;
        if (!c->channels[l] || !c->kernel_size[l] || !c->stride[l] || !side
            || c->padding[l] >= c->kernel_size[l] || c->pool[l] > 1
            || c->kernel_size[l] > side + 2 * c->padding[l])
            return db__fail(ctx, DB_ERROR_FORMAT,
                            "%s: layer %zu has channels, kernel_size, stride, padding or pool that "
                            "do not fit together",
                            what, l);
        side = (side + 2 * c->padding[l] - c->kernel_size[l]) / c->stride[l] + 1;
    }
    return ctx->result;
}

static void db__lpips_declare(db__net *n, const void *config)
{
    db__lpips_record(n, (const db_lpips_config *)config, db__declared_image(n, DB__LPIPS_LEAST),
                     db__declared_image(n, DB__LPIPS_LEAST));
}

static const db__network db__lpips_network = {sizeof(db_lpips), offsetof(db_lpips, config),
                                              sizeof(db_lpips_config), "model", db__lpips_parse,
                                              db__lpips_check, db__lpips_declare, NULL};

db_result db_lpips_config_load(db_ctx *ctx, const char *path, db_lpips_config *out)
{
    return db__config_load(ctx, &db__lpips_network, path, out);
}

/* The scaling layer, (x - shift) / scale of x in [-1,1], as mean and deviation of x in [0,1]. */
static void db__lpips_scaling(db_lpips *m)
{
    static const float shift[3] = {-0.030f, -0.088f, -0.188f}, scale[3] = {0.458f, 0.448f, 0.450f};
    size_t k;
    m->processor.do_rescale = m->processor.do_normalize = 1;
    m->processor.rescale_factor = 1.0 / 255;
    for (k = 0; k < 3; k++) {
        m->processor.image_mean[k] = (1 + shift[k]) / 2;
        m->processor.image_std[k] = scale[k] / 2;
    }
}

db_result db_lpips_create(db_ctx *ctx, const db_lpips_config *config, db_lpips **out)
{
    *out = (db_lpips *)db__network_create(ctx, &db__lpips_network, config, "db_lpips_create");
    if (*out) db__lpips_scaling(*out);
    return ctx->result;
}

db_result db_lpips_load(db_ctx *ctx, const char *directory, db_lpips **out)
{
    *out = (db_lpips *)db__network_load(ctx, &db__lpips_network, directory);
    if (*out) db__lpips_scaling(*out);
    return ctx->result;
}

void db_lpips_free(db_lpips *m) { db__network_free(m); }

db_tensor db_lpips_forward(db_tape *t, db_lpips *m, db_tensor x, db_tensor y)
{
    db__net n = db__net_of(t, &m->params);
    return db__lpips_record(&n, &m->config, x, y);
}

/* ---- pictures and texts to vectors ---------------------------------------------------------- */

/* A tape that computes in f32, with an input for B pictures; NULL after an error (pictures without
   pixels are one), or for B = 0. */
static db_tape *db__metric_tape(db_ctx *ctx, size_t B, size_t height, size_t width, db_tensor *x)
{
    db_tape *t = NULL;
    size_t dim[4];
    if (!B || ctx->result != DB_OK || db_tape_create(ctx, &t) != DB_OK) return NULL;
    t->compute = DB_F32;
    dim[0] = B, dim[1] = height, dim[2] = width, dim[3] = 3;
    *x = db_input(t, DB_F32, 4, dim);
    if (x->id >= 0) return t;
    db_tape_destroy(t);
    return NULL;
}

/* Runs n pictures through a tape, x.dim[0] at a time, and puts the n_out outputs y [B,...] of each
   side by side: out [n][sum of their sizes]. Ends the tape. */
static db_result db__embed(db_tape *t, const db_image_processor *p, db_tensor x, const db_tensor *y,
                           size_t n_out, const db_image *images, size_t n, float *out)
{
    db_ctx *ctx = t->ctx;
    size_t B = x.dim[0], P = db_count(x) / B, from, b, k, width = 0, largest = 0, at;
    float *in, *part;
    for (k = 0; k < n_out; k++) {
        db_keep(t, y[k]);
        width += db_count(y[k]) / B;
        largest = DB__MAX(largest, db_count(y[k]));
    }
    in = (float *)db__alloc(ctx, B * P, sizeof *in);
    part = (float *)db__alloc(ctx, largest, sizeof *part);
    /* the last batch keeps what lay behind its end */
    for (from = 0; from < n && ctx->result == DB_OK; from += B) {
        size_t m = DB__MIN(B, n - from);
        for (b = 0; b < m; b++)
            db_preprocess(ctx, p, &images[from + b], x.dim[1], x.dim[2], in + b * P);
        db_upload(t, x, in);
        db_run(t, 0, 0);
        for (k = 0, at = 0; k < n_out && ctx->result == DB_OK; k++) {
            size_t D = db_count(y[k]) / B;
            db_download(t, y[k], part);
            for (b = 0; b < m; b++)
                memcpy(out + (from + b) * width + at, part + b * D, D * sizeof *out);
            at += D;
        }
    }
    db__free(ctx, in);
    db__free(ctx, part);
    db_tape_destroy(t);
    return ctx->result;
}

db_result db_vit_embed(db_vit *m, const db_image *images, size_t n, float *out)
{
    db_tensor x, y;
    db_tape *t = db__metric_tape(m->params.ctx, DB__MIN(n, (size_t)DB__AT_ONCE),
                                 m->config.image_size, m->config.image_size, &x);
    if (!t) return m->params.ctx->result;
    y = db_vit_forward(t, m, x);
    return db__embed(t, &m->processor, x, &y, 1, images, n, out);
}

db_result db_clip_embed_images(db_clip *m, const db_image *images, size_t n, float *out)
{
    db_tensor x, y;
    db_tape *t = db__metric_tape(m->params.ctx, DB__MIN(n, (size_t)DB__AT_ONCE),
                                 m->config.vision.image_size, m->config.vision.image_size, &x);
    if (!t) return m->params.ctx->result;
    y = db_clip_image_forward(t, m, x);
    return db__embed(t, &m->processor, x, &y, 1, images, n, out);
}

db_result db_clip_embed_texts(db_clip *m, const char *const *texts, size_t n, float *out)
{
    db_ctx *ctx = m->params.ctx;
    size_t T = m->config.text.max_position_embeddings, P = m->config.projection_dim, dim[2], k;
    int32_t *ids = (int32_t *)db__alloc(ctx, T, sizeof *ids), end;
    db_tape *t = NULL;
    db_tensor words, ends, y;
    if (!m->tokenizer)
        db__fail(ctx, DB_ERROR_MISSING, "the CLIP model has no tokenizer, so it reads no texts");
    if (ctx->result != DB_OK || !ids || db_tape_create(ctx, &t) != DB_OK) goto done;
    t->compute = DB_F32;
    dim[0] = 1, dim[1] = T, words = db_input(t, DB_I32, 2, dim);
    dim[1] = 1, ends = db_input(t, DB_I32, 2, dim);
    y = db_clip_text_forward(t, m, words, ends); /* [1,P] */
    db_keep(t, y);
    for (k = 0; k < n && ctx->result == DB_OK; k++) {
        if (db_tokenize(m->tokenizer, texts[k], T, ids, NULL, NULL) != DB_OK) break;
        end = (int32_t)db_clip_end(m, ids, T);
        db_upload(t, words, ids), db_upload(t, ends, &end);
        db_run(t, 0, 0);
        db_download(t, y, out + k * P);
    }
done:
    db_tape_destroy(t);
    db__free(ctx, ids);
    return ctx->result;
}

/* The distances of all pairs from features [n][D]: layer after layer, shaped as `like`. */
static db_result db__lpips_pairs(db_lpips *m, const db_tensor like[DB_LPIPS_LAYERS],
                                 const float *features, size_t D, size_t n, float *out)
{
    db_ctx *ctx = m->params.ctx;
    size_t left = n * (n - 1) / 2, B = DB__MIN(left, (size_t)DB__AT_ONCE), filled = 0;
    size_t who[2][DB__AT_ONCE], i, j, s, l, b;
    float *part = (float *)db__alloc(ctx, B, D * sizeof *part), distance[DB__AT_ONCE];
    db_tensor pair[2][DB_LPIPS_LAYERS], y;
    db_tape *t = NULL;
    db__net net;
    if (!part || db_tape_create(ctx, &t) != DB_OK) goto done;
    t->compute = DB_F32;
    for (s = 0; s < 2; s++)
        for (l = 0; l < DB_LPIPS_LAYERS; l++) {
            size_t dim[3];
            dim[0] = B, dim[1] = like[l].dim[1], dim[2] = like[l].dim[2];
            pair[s][l] = db_input(t, DB_F32, 3, dim);
        }
    net = db__net_of(t, &m->params);
    y = db__lpips_distance(&net, pair[0], pair[1]);
    db_keep(t, y);
    for (i = 0; i < n; i++)
        for (j = i + 1; j < n && ctx->result == DB_OK; j++) {
            who[0][filled] = i, who[1][filled++] = j, left--;
            if (filled < B && left) continue;
            for (s = 0; s < 2; s++) {
                size_t at = 0;
                for (l = 0; l < DB_LPIPS_LAYERS; l++) {
                    size_t d = like[l].dim[1] * like[l].dim[2];
                    for (b = 0; b < filled; b++)
                        memcpy(part + b * d, features + who[s][b] * D + at, d * sizeof *part);
                    db_upload(t, pair[s][l], part);
                    at += d;
                }
            }
            db_run(t, 0, 0);
            db_download(t, y, distance);
            memcpy(out, distance, filled * sizeof *out);
            out += filled, filled = 0;
        }
done:
    db_tape_destroy(t);
    db__free(ctx, part);
    return ctx->result;
}

db_result db_lpips_distances(db_lpips *m, const db_image *images, size_t n, float *out)
{
    db_ctx *ctx = m->params.ctx;
    size_t D = 0, k, l;
    float *features;
    db_tensor x, feature[DB_LPIPS_LAYERS];
    db_tape *t;
    db__net net;
    if (n < 2) return ctx->result;
    for (k = 1; k < n; k++)
        if (images[k].w != images[0].w || images[k].h != images[0].h)
            return db__fail(ctx, DB_ERROR_SHAPE,
                            "LPIPS compares pictures of one size: picture 0 has %zu x %zu pixels, "
                            "picture %zu %zu x %zu",
                            images[0].w, images[0].h, k, images[k].w, images[k].h);
    t = db__metric_tape(ctx, DB__MIN(n, (size_t)DB__AT_ONCE), images[0].h, images[0].w, &x);
    if (!t) return ctx->result;
    net = db__net_of(t, &m->params);
    db__lpips_features(&net, &m->config, x, feature);
    for (l = 0; l < DB_LPIPS_LAYERS; l++) D += db_count(feature[l]) / x.dim[0];
    features = ctx->result == DB_OK ? (float *)db__alloc(ctx, n, D * sizeof *features) : NULL;
    db__embed(t, &m->processor, x, feature, DB_LPIPS_LAYERS, images, n, features);
    if (ctx->result == DB_OK) db__lpips_pairs(m, feature, features, D, n, out);
    db__free(ctx, features);
    return ctx->result;
}

/* ---- the numbers ---------------------------------------------------------------------------- */

static double db__cosine(const float *a, const float *b, size_t D)
{
    double ab = 0, aa = 0, bb = 0;
    size_t k;
    for (k = 0; k < D; k++) {
        ab += (double)a[k] * (double)b[k];
        aa += (double)a[k] * (double)a[k];
        bb += (double)b[k] * (double)b[k];
    }
    return ab / sqrt(aa * bb);
}

/* sum / n, or not a number. */
static double db__mean_of(double sum, size_t n) { return n ? sum / (double)n : (double)NAN; }

double db_cosine_between(const float *a, size_t n, const float *b, size_t m, size_t D)
{
    double sum = 0;
    size_t i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < m; j++) sum += db__cosine(a + i * D, b + j * D, D);
    return db__mean_of(sum, n * m);
}

double db_cosine_within(const float *a, size_t n, size_t D)
{
    double sum = 0;
    size_t i, j;
    for (i = 0; i < n; i++)
        for (j = i + 1; j < n; j++) sum += db__cosine(a + i * D, a + j * D, D);
    return db__mean_of(sum, n * (n - DB__MIN(n, (size_t)1)) / 2);
}

double db_cosine_paired(const float *a, const float *b, size_t n, size_t D)
{
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) sum += db__cosine(a + i * D, b + i * D, D);
    return db__mean_of(sum, n);
}

double db_normalized_fidelity(double generated, double real, double floor)
{
    return (generated - floor) / (real - floor);
}

double db_drift(double pres_tuned, double pres_original, double fidelity)
{
    return (pres_tuned - pres_original) / (fidelity - pres_original);
}

/* Embeddings [n,D] of pictures by one of the two networks, to be freed; NULL for no pictures. */
static float *db__embed_set(db_ctx *ctx, db_vit *dino, db_clip *clip, const db_image *images,
                            size_t n)
{
    size_t D = dino ? dino->config.hidden_size : clip->config.projection_dim;
    float *out = n && ctx->result == DB_OK ? (float *)db__alloc(ctx, n, D * sizeof *out) : NULL;
    if (!out) return NULL;
    if (dino) db_vit_embed(dino, images, n, out);
    else db_clip_embed_images(clip, images, n, out);
    return out;
}

/* Adds the distances of all pairs of n pictures to *sum and their number to *pairs. */
static void db__add_distances(db_ctx *ctx, db_lpips *m, const db_image *images, size_t n,
                              double *sum, size_t *pairs)
{
    size_t k, n_pairs = n < 2 ? 0 : n * (n - 1) / 2;
    float *distance = n_pairs ? (float *)db__alloc(ctx, n_pairs, sizeof *distance) : NULL;
    if (!distance) return;
    db_lpips_distances(m, images, n, distance);
    for (k = 0; k < n_pairs; k++) *sum += (double)distance[k];
    *pairs += n_pairs;
    db__free(ctx, distance);
}

static double db__diversity(db_ctx *ctx, db_lpips *m, const db_image *images, size_t n)
{
    double sum = 0;
    size_t pairs = 0;
    db__add_distances(ctx, m, images, n, &sum, &pairs);
    return db__mean_of(sum, pairs);
}

/* The mean distance over the pairs of generated pictures that share a prompt. */
static double db__diversity_by_prompt(db_ctx *ctx, const db_evaluation *e)
{
    double sum = 0;
    size_t n = e->n_generated, pairs = 0, i, j, members;
    db_image *group = n ? (db_image *)db__alloc(ctx, n, sizeof *group) : NULL;
    char *seen = n ? (char *)db__alloc(ctx, n, 1) : NULL;
    for (i = 0; i < n && ctx->result == DB_OK; i++) {
        if (seen[i]) continue;
        for (j = i, members = 0; j < n; j++)
            if (!strcmp(e->prompts[i], e->prompts[j]))
                seen[j] = 1, group[members++] = e->generated[j];
        db__add_distances(ctx, e->lpips, group, members, &sum, &pairs);
    }
    db__free(ctx, group);
    db__free(ctx, seen);
    return db__mean_of(sum, pairs);
}

db_result db_evaluate(db_ctx *ctx, const db_evaluation *e, db_scores *out)
{
#define DB__NONE(field, name, what) out->field = (double)NAN;
    DB_SCORES(DB__NONE)
#undef DB__NONE
    if (e->dino) {
        size_t D = e->dino->config.hidden_size;
        float *generated = db__embed_set(ctx, e->dino, NULL, e->generated, e->n_generated),
              *real = db__embed_set(ctx, e->dino, NULL, e->real, e->n_real);
        float *held_out = db__embed_set(ctx, e->dino, NULL, e->held_out, e->n_held_out),
              *tuned = db__embed_set(ctx, e->dino, NULL, e->class_images, e->n_class);
        float *original = db__embed_set(ctx, e->dino, NULL, e->original_class, e->n_original);
        if (ctx->result == DB_OK) {
            out->dino = db_cosine_between(generated, e->n_generated, real, e->n_real, D);
            out->dino_held_out = db_cosine_between(generated, e->n_generated, held_out,
                                                   e->n_held_out, D);
            out->dino_real = db_cosine_within(real, e->n_real, D);
            out->pres = db_cosine_between(tuned, e->n_class, real, e->n_real, D);
            out->pres_original = db_cosine_between(original, e->n_original, real, e->n_real, D);
            out->normalized_fidelity = db_normalized_fidelity(out->dino, out->dino_real,
                                                              out->pres_original);
            out->drift = db_drift(out->pres, out->pres_original, out->dino);
        }
        db__free(ctx, generated);
        db__free(ctx, real);
        db__free(ctx, held_out);
        db__free(ctx, tuned);
        db__free(ctx, original);
    }
    if (e->clip) {
        size_t D = e->clip->config.projection_dim;
        float *generated = db__embed_set(ctx, NULL, e->clip, e->generated, e->n_generated),
              *real = db__embed_set(ctx, NULL, e->clip, e->real, e->n_real);
        float *texts = NULL;
        if (e->prompts && e->clip->tokenizer && e->n_generated)
            texts = (float *)db__alloc(ctx, e->n_generated, D * sizeof *texts);
        if (texts) db_clip_embed_texts(e->clip, e->prompts, e->n_generated, texts);
        if (ctx->result == DB_OK) {
            out->clip_i = db_cosine_between(generated, e->n_generated, real, e->n_real, D);
            out->clip_i_real = db_cosine_within(real, e->n_real, D);
            if (texts) out->clip_t = db_cosine_paired(generated, texts, e->n_generated, D);
        }
        db__free(ctx, generated);
        db__free(ctx, real);
        db__free(ctx, texts);
    }
    if (e->lpips) {
        out->div = e->prompts ? db__diversity_by_prompt(ctx, e)
                              : db__diversity(ctx, e->lpips, e->generated, e->n_generated);
        out->class_diversity = db__diversity(ctx, e->lpips, e->class_images, e->n_class);
        out->class_diversity_original = db__diversity(ctx, e->lpips, e->original_class,
                                                      e->n_original);
    }
    return ctx->result;
}

#ifdef __cplusplus
}
#endif

#else /* the file includes itself: one instruction set, one data type */

/* ==== [DB-03a] CPU kernels, one body for every instruction set ===================================

   This part of the file is compiled several times: the file includes itself once per instruction
   set and data type (see [DB-03b]), each time with another meaning of the two dozen DB__v macros
   below. A kernel works on pointers and sizes, on one thread; the drivers in [DB-03c] cut the work
   into pieces.

     DB__V, DB__VN      a vector of floats and its number of lanes
     DB__T              what tensors hold in memory: float, or uint16_t for bf16
     DB__LD, DB__ST     a vector of DB__T as floats
     DB__MR, DB__NP     rows and panels of a register tile, so that accumulators, B and A fit
     DB__PV, DB__K2     vectors to a panel; numbers of k side by side in it: 1, bf16 2
     DB__vselect_lt     a < b ? x : y
     DB__vscale2        x 2^n
     DB__vlow_bf16, DB__vhigh_bf16    the first, the second numbers of DB__VN pairs, as floats
     DB__vdot2          acc += pair[0] b[][0] + pair[1] b[][1]; DB__PAIRS: in one instruction
     DB__vzip_bf16      DB__VN numbers and DB__VN numbers -> pairs
     DB__vturn          transposes 16 x 16 words in place

   The one exception to "one body" is the matrix product on the tile unit (DB__AMX_TARGET).

   Easy to get wrong
   - Multiply-adds are explicit: what a compiler fuses on its own differs between compilers.
   - gcc and clang warn about, or refuse, vectors passed by value between functions of different
     targets; helpers here take pointers and are always inlined.                               */

#if defined(DB__PASS_AVX512) || defined(DB__PASS_AVX512BF16) || defined(DB__PASS_AMX)
#define DB__V __m512
#define DB__VN 16
#define DB__MR 12 /* rows and panels of a register tile: 12 x 2 accumulators, 2 of B, 1 of A */
#define DB__NP 2
#define DB__vload(p) _mm512_loadu_ps(p)
#define DB__vstore(p, v) _mm512_storeu_ps(p, v)
#define DB__vset1(x) _mm512_set1_ps(x)
#define DB__vadd(a, b) _mm512_add_ps(a, b)
#define DB__vsub(a, b) _mm512_sub_ps(a, b)
#define DB__vmul(a, b) _mm512_mul_ps(a, b)
#define DB__vdiv(a, b) _mm512_div_ps(a, b)
#define DB__vfma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define DB__vmax(a, b) _mm512_max_ps(a, b)
#define DB__vmin(a, b) _mm512_min_ps(a, b)
#define DB__vsqrt(a) _mm512_sqrt_ps(a)
#define DB__vround(a) _mm512_roundscale_ps(a, 8)
#define DB__vabs(a) _mm512_abs_ps(a)
#define DB__vselect_lt(a, b, x, y) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x)
#define DB__vscale2(x, n) _mm512_scalef_ps(x, n)
#define DB__vguess_reciprocal(x) _mm512_rcp14_ps(x)
#define DB__vload_bf16(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32( \
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define DB__vlow_bf16(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512((const void *)(p)), 16))
#define DB__vhigh_bf16(p) \
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512((const void *)(p)), \
                                         _mm512_set1_epi32((int)0xffff0000u)))
#define DB__vzip_bf16(p, a, b) \
    _mm512_storeu_si512( \
        (void *)(p), \
        _mm512_or_si512( \
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(a))), \
            _mm512_slli_epi32( \
                _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(b))), \
                16)))
/* Four rounds, each of which interleaves the halves: row i goes with row i + 8. */
#define DB__vturn(tile) do { \
        __m512i db__r[16], db__s[16]; \
        const __m512i db__low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, \
            22, 7, 23); \
        const __m512i db__high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, \
            29, 14, 30, 15, 31); \
        int db__i, db__round; \
        DB__UNROLL for (db__i = 0; db__i < 16; db__i++) \
            db__r[db__i] = _mm512_loadu_si512((const void *)(tile)[db__i]); \
        DB__UNROLL for (db__round = 0; db__round < 4; db__round++) { \
            DB__UNROLL for (db__i = 0; db__i < 8; db__i++) { \
                db__s[2 * db__i] = _mm512_permutex2var_epi32(db__r[db__i], db__low, \
                    db__r[db__i + 8]); \
                db__s[2 * db__i + 1] = _mm512_permutex2var_epi32(db__r[db__i], db__high, \
                    db__r[db__i + 8]); \
            } \
            DB__UNROLL for (db__i = 0; db__i < 16; db__i++) db__r[db__i] = db__s[db__i]; \
        } \
        DB__UNROLL for (db__i = 0; db__i < 16; db__i++) \
            _mm512_storeu_si512((void *)(tile)[db__i], db__r[db__i]); \
    } while (0)
#if defined(DB__PASS_AVX512)
#define DB__SET avx512
#define DB__TARGET DB__TARGET_AVX512
/* Round to nearest even by adding half of the last kept bit, plus that bit itself; what is no
   number stays none. */
#define DB__vstore_bf16(p, v) do { \
        __m512 db__v = (v); \
        __m512i db__b = _mm512_castps_si512(db__v), db__nan = _mm512_set1_epi32(0x400000); \
        __mmask16 db__is_nan = _mm512_cmp_ps_mask(db__v, db__v, _CMP_UNORD_Q); \
        db__nan = _mm512_or_si512(db__b, db__nan); \
        db__b = _mm512_add_epi32(db__b, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), \
            _mm512_and_si512(_mm512_srli_epi32(db__b, 16), _mm512_set1_epi32(1)))); \
        db__b = _mm512_mask_mov_epi32(db__b, db__is_nan, db__nan); \
        _mm256_storeu_si256((__m256i *)(void *)(p), \
            _mm512_cvtepi32_epi16(_mm512_srli_epi32(db__b, 16))); \
    } while (0)
#else
#define DB__TARGET DB__TARGET_AVX512BF16
#define DB__vstore_bf16(p, v) do { \
        __m256bh db__b = _mm512_cvtneps_pbh(v); \
        memcpy(p, &db__b, 32); \
    } while (0)
#define DB__vdot2(acc, pair, b) \
    (acc) = _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)(pair)), \
                             (__m512bh)_mm512_loadu_si512((const void *)(b)))
#if defined(DB__PASS_AMX)
#define DB__SET amx
#define DB__AMX_TARGET DB__TARGET_AMX
#else
#define DB__SET avx512bf16
#endif
#endif

#elif defined(DB__PASS_AVX2)
#define DB__SET avx2
#define DB__TARGET DB__TARGET_AVX2
#define DB__V __m256
#define DB__VN 8
#define DB__MR 6
#define DB__NP 1
#define DB__vload(p) _mm256_loadu_ps(p)
#define DB__vstore(p, v) _mm256_storeu_ps(p, v)
#define DB__vset1(x) _mm256_set1_ps(x)
#define DB__vadd(a, b) _mm256_add_ps(a, b)
#define DB__vsub(a, b) _mm256_sub_ps(a, b)
#define DB__vmul(a, b) _mm256_mul_ps(a, b)
#define DB__vdiv(a, b) _mm256_div_ps(a, b)
#define DB__vfma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define DB__vmax(a, b) _mm256_max_ps(a, b)
#define DB__vmin(a, b) _mm256_min_ps(a, b)
#define DB__vsqrt(a) _mm256_sqrt_ps(a)
#define DB__vround(a) _mm256_round_ps(a, 8)
#define DB__vabs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define DB__vselect_lt(a, b, x, y) _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ))
#define DB__vscale2(x, n) \
    _mm256_mul_ps(x, \
                  _mm256_castsi256_ps(_mm256_slli_epi32( \
                      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)))
#define DB__vguess_reciprocal(x) \
    _mm256_mul_ps(_mm256_rcp_ps(x), \
                  _mm256_sub_ps(_mm256_set1_ps(2.0f), _mm256_mul_ps(x, _mm256_rcp_ps(x))))
#define DB__vload_bf16(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32( \
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define DB__vlow_bf16(p) \
    _mm256_castsi256_ps( \
        _mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)), 16))
#define DB__vhigh_bf16(p) \
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(p)), \
                                         _mm256_set1_epi32((int)0xffff0000u)))
#define DB__vstore_bf16(p, v) do { \
        __m256 db__v = (v); \
        __m256i db__b = _mm256_castps_si256(db__v), \
                db__nan = _mm256_or_si256(db__b, _mm256_set1_epi32(0x400000)); \
        db__b = _mm256_add_epi32(db__b, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), \
            _mm256_and_si256(_mm256_srli_epi32(db__b, 16), _mm256_set1_epi32(1)))); \
        db__b = _mm256_blendv_epi8( \
            db__b, db__nan, _mm256_castps_si256(_mm256_cmp_ps(db__v, db__v, _CMP_UNORD_Q))); \
        db__b = _mm256_srli_epi32(db__b, 16); \
        _mm_storeu_si128((__m128i *)(void *)(p), \
            _mm_packus_epi32(_mm256_castsi256_si128(db__b), _mm256_extracti128_si256(db__b, 1))); \
    } while (0)

#elif defined(DB__PASS_NEON)
#define DB__SET neon
#define DB__TARGET
#define DB__V float32x4_t
#define DB__VN 4
#define DB__MR 6
#define DB__NP 1
#define DB__vload(p) vld1q_f32(p)
#define DB__vstore(p, v) vst1q_f32(p, v)
#define DB__vset1(x) vdupq_n_f32(x)
#define DB__vadd(a, b) vaddq_f32(a, b)
#define DB__vsub(a, b) vsubq_f32(a, b)
#define DB__vmul(a, b) vmulq_f32(a, b)
#define DB__vdiv(a, b) vdivq_f32(a, b)
#define DB__vfma(a, b, c) vfmaq_f32(c, a, b)
#define DB__vmax(a, b) vmaxq_f32(a, b)
#define DB__vmin(a, b) vminq_f32(a, b)
#define DB__vsqrt(a) vsqrtq_f32(a)
#define DB__vround(a) vrndnq_f32(a)
#define DB__vabs(a) vabsq_f32(a)
#define DB__vselect_lt(a, b, x, y) vbslq_f32(vcltq_f32(a, b), x, y)
#define DB__vscale2(x, n) \
    vmulq_f32( \
        x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)))
#define DB__vguess_reciprocal(x) vmulq_f32(vrecpeq_f32(x), vrecpsq_f32(x, vrecpeq_f32(x)))
#define DB__vload_bf16(p) vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))
#define DB__vlow_bf16(p) vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(p)), 16))
#define DB__vhigh_bf16(p) \
    vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(p)), vdupq_n_u32(0xffff0000u)))
#define DB__vstore_bf16(p, v) do { \
        float32x4_t db__v = (v); \
        uint32x4_t db__b = vreinterpretq_u32_f32(db__v), \
                   db__nan = vorrq_u32(db__b, vdupq_n_u32(0x400000)); \
        db__b = vaddq_u32(db__b, vaddq_u32(vdupq_n_u32(0x7fff), vandq_u32(vshrq_n_u32(db__b, \
            16), vdupq_n_u32(1)))); \
        db__b = vbslq_u32(vceqq_f32(db__v, db__v), db__b, db__nan); \
        vst1_u16(p, vshrn_n_u32(db__b, 16)); \
    } while (0)

#else
#define DB__SET scalar
#define DB__TARGET
#define DB__V float
#define DB__VN 1
#define DB__MR 2
#define DB__NP 1
#define DB__vload(p) (*(p))
#define DB__vstore(p, v) (*(p) = (v))
#define DB__vset1(x) (x)
#define DB__vadd(a, b) ((a) + (b))
#define DB__vsub(a, b) ((a) - (b))
#define DB__vmul(a, b) ((a) * (b))
#define DB__vdiv(a, b) ((a) / (b))
#define DB__vfma(a, b, c) ((a) * (b) + (c))
#define DB__vmax(a, b) DB__MAX(a, b)
#define DB__vmin(a, b) DB__MIN(a, b)
#define DB__vsqrt(a) sqrtf(a)
#define DB__vround(a) rintf(a)
#define DB__vabs(a) fabsf(a)
#define DB__vselect_lt(a, b, x, y) ((a) < (b) ? (x) : (y))
#define DB__vscale2(x, n) ((x) * db__bits_to_float((uint32_t)(lrintf(n) + 127) << 23))
#define DB__vguess_reciprocal(x) (1.0f / (x))
#define DB__vload_bf16(p) db__bits_to_float((uint32_t)(*(p)) << 16)
#define DB__vlow_bf16(p) db__bits_to_float((uint32_t)((p)[0]) << 16)
#define DB__vhigh_bf16(p) db__bits_to_float((uint32_t)((p)[1]) << 16)
#define DB__vstore_bf16(p, v) (*(p) = db__f32_to_bf16(v))
#endif

#ifdef DB__vdot2
#define DB__PAIRS 1
#else /* no instruction for it: two multiply-adds on the widened halves of a pair */
#define DB__PAIRS 0
#define DB__vdot2(acc, pair, b) do { \
        (acc) = DB__vfma(DB__vset1(db__bits_to_float((uint32_t)(pair) << 16)), \
            DB__vlow_bf16(b), acc); \
        (acc) = DB__vfma(DB__vset1(db__bits_to_float((uint32_t)(pair) & 0xffff0000u)), \
            DB__vhigh_bf16(b), acc); \
    } while (0)
#endif

#ifndef DB__vturn
#define DB__vzip_bf16(p, a, b) do { /* 16 and 16 numbers -> 16 pairs */ \
        int db__i; \
        for (db__i = 0; db__i < 16; db__i++) { /* words of a tile: no stores as uint16_t */ \
            uint16_t db__pair[2]; \
            db__pair[0] = (a)[db__i], db__pair[1] = (b)[db__i]; \
            memcpy((p) + 2 * db__i, db__pair, sizeof db__pair); \
        } \
    } while (0)
/* transposes 16 x 16 words in place */
#define DB__vturn(tile) do { \
        int db__i, db__j; \
        for (db__i = 0; db__i < 16; db__i++) \
            for (db__j = 0; db__j < db__i; db__j++) { \
                uint32_t db__word = (tile)[db__i][db__j]; \
                (tile)[db__i][db__j] = (tile)[db__j][db__i], (tile)[db__j][db__i] = db__word; \
            } \
    } while (0)
#endif

#ifdef DB__PASS_BF16
#define DB__T uint16_t
#define DB__TYPE bf16
#define DB__LD(p) DB__vload_bf16(p)
#define DB__ST(p, v) DB__vstore_bf16(p, v)
#define DB__TO_T(x) db__f32_to_bf16(x)
#define DB__K2 2 /* K advances by pairs */
#else
#define DB__T float
#define DB__TYPE f32
#define DB__LD(p) DB__vload(p)
#define DB__ST(p, v) DB__vstore(p, v)
#define DB__TO_T(x) (x)
#define DB__K2 1
#endif

#define DB__FN(name) DB__PASTE(db__k_##name, DB__SET, DB__TYPE)
#define DB__KERNEL static DB__TARGET
#ifdef __GNUC__
#define DB__INLINE static inline __attribute__((always_inline)) DB__TARGET
#else
#define DB__INLINE static inline
#endif
#define DB__PV (16 / DB__VN) /* vectors a panel of 16 columns */

/* The next vector of a row of which n elements are left: past its end zeros are read and nothing is
   written. load_n, store_n: of DB__T; loadf_n, storef_n: of floats. */
DB__INLINE void DB__FN(load_n)(DB__V *v, const DB__T *p, size_t n)
{
    if (n >= DB__VN) {
        *v = DB__LD(p);
    } else {
        DB__T edge[DB__VN];
        memset(edge, 0, sizeof edge);
        memcpy(edge, p, n * sizeof *p);
        *v = DB__LD(edge);
    }
}

DB__INLINE void DB__FN(store_n)(DB__T *p, const DB__V *v, size_t n)
{
    if (n >= DB__VN) {
        DB__ST(p, *v);
    } else {
        DB__T edge[DB__VN];
        DB__ST(edge, *v);
        memcpy(p, edge, n * sizeof *p);
    }
}

DB__INLINE void DB__FN(loadf_n)(DB__V *v, const float *p, size_t n)
{
    if (n >= DB__VN) {
        *v = DB__vload(p);
    } else {
        float edge[DB__VN];
        memset(edge, 0, sizeof edge);
        memcpy(edge, p, n * sizeof *p);
        *v = DB__vload(edge);
    }
}

DB__INLINE void DB__FN(storef_n)(float *p, const DB__V *v, size_t n)
{
    if (n >= DB__VN) {
        DB__vstore(p, *v);
    } else {
        float edge[DB__VN];
        DB__vstore(edge, *v);
        memcpy(p, edge, n * sizeof *p);
    }
}

/* The sum of the lanes, always in the same order. */
DB__INLINE float DB__FN(sum)(const DB__V *v)
{
    float lane[DB__VN], sum = 0;
    int k;
    DB__vstore(lane, *v);
    for (k = 0; k < DB__VN; k++) sum += lane[k];
    return sum;
}

/* ---- elementary functions ----------------------------------------------------------------------
   on U vectors side by side, 2 where there are as many: a chain of thirty operations, each waiting
   for the last, leaves half of the processor idle. So each of their steps is this loop: */
#define DB__EACH DB__UNROLL for (u = 0; u < U; u++)

/* U whole vectors; or, U = 1, n lanes of one. */
DB__INLINE void DB__FN(load_u)(DB__V *v, const DB__T *p, size_t n, const int U)
{
    int u;
    if (U == 1) DB__FN(load_n)(v, p, n);
    else DB__EACH v[u] = DB__LD(p + u * DB__VN);
}

DB__INLINE void DB__FN(store_u)(DB__T *p, const DB__V *v, size_t n, const int U)
{
    int u;
    if (U == 1) DB__FN(store_n)(p, v, n);
    else DB__EACH DB__ST(p + u * DB__VN, v[u]);
}

DB__INLINE void DB__FN(loadf_u)(DB__V *v, const float *p, size_t n, const int U)
{
    int u;
    if (U == 1) DB__FN(loadf_n)(v, p, n);
    else DB__EACH v[u] = DB__vload(p + u * DB__VN);
}

DB__INLINE void DB__FN(storef_u)(float *p, const DB__V *v, size_t n, const int U)
{
    int u;
    if (U == 1) DB__FN(storef_n)(p, v, n);
    else DB__EACH DB__vstore(p + u * DB__VN, v[u]);
}

/* Calls body(i, U) so that i walks n numbers, by two vectors and then by one. */
#define DB__WALK(i, n, body)                                                                       \
    for (i = 0; i + 2 * DB__VN <= (n); i += 2 * DB__VN) body(i, 2);                                \
    for (; i < (n); i += DB__VN) body(i, 1)

/* e^x: x = k ln 2 + r, |r| <= ln 2 / 2, and a polynomial of degree 6 in r (relative error 3e-7).
   What is no number stays none: hence the order of the arguments of vmin and vmax. */
DB__INLINE void DB__FN(exp)(DB__V *x, const int U)
{
    DB__V r[2], k[2], p[2];
    int u;
    DB__EACH r[u] = DB__vmin(DB__vset1(87.0f), /* the reciprocal is a normal number too */
                             DB__vmax(DB__vset1(-87.0f), x[u]));
    DB__EACH k[u] = DB__vround(DB__vmul(r[u], DB__vset1(1.44269504f)));
    DB__EACH r[u] = DB__vfma(k[u], DB__vset1(-0.693359375f), r[u]);
    DB__EACH r[u] = DB__vfma(k[u], DB__vset1(2.12194440e-4f), r[u]);
    DB__EACH p[u] = DB__vfma(DB__vset1(1.0f / 720), r[u], DB__vset1(1.0f / 120));
    DB__EACH p[u] = DB__vfma(p[u], r[u], DB__vset1(1.0f / 24));
    DB__EACH p[u] = DB__vfma(p[u], r[u], DB__vset1(1.0f / 6));
    DB__EACH p[u] = DB__vfma(p[u], r[u], DB__vset1(0.5f));
    DB__EACH p[u] = DB__vfma(p[u], r[u], DB__vset1(1.0f));
    DB__EACH p[u] = DB__vfma(p[u], r[u], DB__vset1(1.0f));
    /* Below e^-87 the result is 0: subnormal numbers would slow the products they enter a
       hundredfold. */
    DB__EACH x[u] =
        DB__vselect_lt(x[u], DB__vset1(-87.0f), DB__vset1(0.0f), DB__vscale2(p[u], k[u]));
}

/* 1 / x by a step of Newton's from a guess of at least 14 bits: less than half of a division's
   time. */
DB__INLINE void DB__FN(reciprocal)(DB__V *x, const int U)
{
    DB__V y[2];
    int u;
    DB__EACH y[u] = DB__vguess_reciprocal(x[u]);
    DB__EACH x[u] = DB__vfma(x[u], y[u], DB__vset1(-1.0f)); /* small, and exact: 1 / 1 becomes 1 */
    DB__EACH x[u] = DB__vsub(y[u], DB__vmul(y[u], x[u]));
}

DB__INLINE void DB__FN(sigmoid)(DB__V *x, const int U)
{
    int u;
    DB__EACH x[u] = DB__vsub(DB__vset1(0.0f), x[u]);
    DB__FN(exp)(x, U);
    DB__EACH x[u] = DB__vadd(DB__vset1(1.0f), x[u]);
    DB__FN(reciprocal)(x, U);
}

/* The normal distribution function and density. erf by Abramowitz and Stegun, 7.1.26: its
   error is 1.5e-7, in single precision 6e-7. */
DB__INLINE void DB__FN(normal_cdf)(const DB__V *x, DB__V *cdf, DB__V *pdf, const int U)
{
    DB__V a[2], e[2], t[2], p[2];
    int u;
    DB__EACH a[u] = DB__vmul(DB__vabs(x[u]), DB__vset1(0.70710678f));
    DB__EACH e[u] = DB__vmul(DB__vmul(x[u], x[u]), DB__vset1(-0.5f));
    DB__FN(exp)(e, U);
    DB__EACH t[u] = DB__vfma(a[u], DB__vset1(0.3275911f), DB__vset1(1.0f));
    DB__FN(reciprocal)(t, U);
    DB__EACH p[u] = DB__vfma(DB__vset1(1.061405429f), t[u], DB__vset1(-1.453152027f));
    DB__EACH p[u] = DB__vfma(p[u], t[u], DB__vset1(1.421413741f));
    DB__EACH p[u] = DB__vfma(p[u], t[u], DB__vset1(-0.284496736f));
    DB__EACH p[u] = DB__vfma(p[u], t[u], DB__vset1(0.254829592f));
    DB__EACH p[u] =
        DB__vmul(DB__vmul(DB__vmul(p[u], t[u]), e[u]), DB__vset1(0.5f)); /* the tail beyond |x| */
    DB__EACH cdf[u] = DB__vselect_lt(x[u], DB__vset1(0.0f), p[u], DB__vsub(DB__vset1(1.0f), p[u]));
    DB__EACH pdf[u] = DB__vmul(e[u], DB__vset1(0.39894228f));
}

/* tanh-approximated gelu is x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
#define DB__GELU_A 1.5957691216f
#define DB__GELU_B (1.5957691216f * 0.044715f)

/* x -> act(x). The switch is on a constant, so each use compiles to a single case. */
DB__INLINE void DB__FN(activate)(DB__V *x, const int act, const int U)
{
    DB__V s[2], pdf[2];
    int u;
    DB__EACH s[u] = x[u];
    switch (act) {
    case DB_ACT_SILU: DB__FN(sigmoid)(s, U); break;
    case DB_ACT_GELU: DB__FN(normal_cdf)(x, s, pdf, U); break;
    case DB_ACT_GELU_TANH:
        DB__EACH s[u] = DB__vmul(
            x[u], DB__vfma(DB__vmul(x[u], x[u]), DB__vset1(DB__GELU_B), DB__vset1(DB__GELU_A)));
        DB__FN(sigmoid)(s, U);
        break;
    case DB_ACT_QUICK_GELU:
        DB__EACH s[u] = DB__vmul(s[u], DB__vset1(1.702f));
        DB__FN(sigmoid)(s, U);
        break;
    case DB_ACT_RELU: DB__EACH x[u] = DB__vmax(DB__vset1(0.0f), x[u]); return;
    default: return;
    }
    DB__EACH x[u] = DB__vmul(x[u], s[u]);
}

/* x -> act'(x) */
DB__INLINE void DB__FN(activate_slope)(DB__V *x, const int act, const int U)
{
    DB__V s[2], v[2], one = DB__vset1(1.0f);
    int u;
    DB__EACH s[u] = v[u] = x[u];
    switch (act) {
    case DB_ACT_SILU: DB__FN(sigmoid)(s, U); break;
    case DB_ACT_GELU:
        DB__FN(normal_cdf)(x, s, v, U);
        DB__EACH x[u] = DB__vfma(x[u], v[u], s[u]);
        return;
    case DB_ACT_GELU_TANH:
        DB__EACH s[u] = DB__vmul(
            x[u], DB__vfma(DB__vmul(x[u], x[u]), DB__vset1(DB__GELU_B), DB__vset1(DB__GELU_A)));
        DB__EACH v[u] = DB__vmul(
            x[u], DB__vfma(DB__vmul(x[u], x[u]), DB__vset1(3 * DB__GELU_B), DB__vset1(DB__GELU_A)));
        DB__FN(sigmoid)(s, U);
        break;
    case DB_ACT_QUICK_GELU:
        DB__EACH s[u] = v[u] = DB__vmul(s[u], DB__vset1(1.702f));
        DB__FN(sigmoid)(s, U);
        break;
    case DB_ACT_RELU:
        DB__EACH x[u] = DB__vselect_lt(DB__vset1(0.0f), x[u], one, DB__vset1(0.0f));
        return;
    default: DB__EACH x[u] = one; return;
    }
    DB__EACH x[u] =
        DB__vmul(s[u],
                 DB__vfma(v[u], DB__vsub(one, s[u]),
                          one)); /* (x s)' = s (1 + v (1 - s)), s = sigmoid(w(x)), v = x w' */
}

/* Carries out DB__BODY, in which DB__ACT is a constant. */
#define DB__SWITCH_ACT(act)                                                                        \
    switch (act) {                                                                                 \
    case DB_ACT_SILU: { enum { DB__ACT = DB_ACT_SILU }; DB__BODY } break;                          \
    case DB_ACT_GELU: { enum { DB__ACT = DB_ACT_GELU }; DB__BODY } break;                          \
    case DB_ACT_GELU_TANH: { enum { DB__ACT = DB_ACT_GELU_TANH }; DB__BODY } break;                \
    case DB_ACT_QUICK_GELU: { enum { DB__ACT = DB_ACT_QUICK_GELU }; DB__BODY } break;              \
    case DB_ACT_RELU: { enum { DB__ACT = DB_ACT_RELU }; DB__BODY } break;                          \
    default: { enum { DB__ACT = DB_ACT_NONE }; DB__BODY } break;                                   \
    }

/* ---- matrix product -----------------------------------------------------------------------------
   C[m][16 panels] = start + sum over taps of A_tap[m][k] B_tap[k][16 panels].

   A is read where it lies: rows lda apart, a_k from k to k. So it may be transposed in f32; in bf16
   the two numbers of a pair are neighbours, on the tile unit 32 are, and the next lie 32 a_k on.
   B is packed into panels of 16 columns, k major; in bf16 two neighbouring k sit side by side, as
   the dot product instructions want them. One register tile holds DB__MR rows of C by DB__NP
   panels; each step of k broadcasts DB__MR numbers of A against DB__NP panels of B.

   Panels outside, rows inside: every row tile reads the same DB__NP panels while A streams past.
   k is not cut: C stays in registers from the first to the last (cutting it at 192 to 512 gained
   nothing). In f32 the row of B 16 rows on is called into the first cache. So is C in both types,
   which is often in memory, but row by row: all at once would occupy every buffer that waits for
   memory. Two steps of k at a time leave fewer instructions between the multiply-adds: some 15 %
   faster where another thread shares the core, 5 % where none does; four gain less. */

#ifndef DB__AMX_TARGET
/* One step of k for MR rows: a, a4 and a8 point to rows 0, 4 and 8 of the tile, few enough
   addresses for the registers. */
DB__INLINE void DB__FN(gemm_step)(DB__V *acc, const DB__T *a, const DB__T *a4, const DB__T *a8,
                                  size_t lda, const DB__T *b, size_t b_panel, const int MR,
                                  const int NP)
{
    int r, v;
#ifndef DB__PASS_BF16
    DB__V column[DB__NP * DB__PV];
    DB__UNROLL for (v = 0; v < NP * DB__PV; v++) {
        const DB__T *at = b + (size_t)(v / DB__PV) * b_panel + (v % DB__PV) * DB__VN;
        if (v % DB__PV == 0) DB__PREFETCH(at + 16 * 16);
        column[v] = DB__vload(at);
    }
#endif
    DB__UNROLL for (r = 0; r < MR; r++) {
        const DB__T *row = (r < 4 ? a : r < 8 ? a4 : a8) + (size_t)(r % 4) * lda;
#ifdef DB__PASS_BF16
        uint32_t pair;
        memcpy(&pair, row, 4);
        DB__UNROLL for (v = 0; v < NP * DB__PV; v++)
            DB__vdot2(acc[r * NP * DB__PV + v], pair,
                      b + (size_t)(v / DB__PV) * b_panel + (v % DB__PV) * 2 * DB__VN);
#else
        DB__V x = DB__vset1(*row);
        DB__UNROLL for (v = 0; v < NP * DB__PV; v++)
            acc[r * NP * DB__PV + v] = DB__vfma(x, column[v], acc[r * NP * DB__PV + v]);
#endif
    }
}

DB__INLINE void DB__FN(gemm_tile)(const db__gemm *g, size_t row, size_t panel, const int MR,
                                  const int NP)
{
    DB__V acc[DB__MR * DB__NP * DB__PV];
    size_t tap, k, lda = g->lda, a_k = g->a_k * DB__K2, b_k = g->b_k * DB__K2;
    int r, v, ahead = 0;
    DB__UNROLL for (r = 0; r < MR; r++)
        DB__UNROLL for (v = 0; v < NP * DB__PV; v++) {
            size_t i = row + (size_t)r, j = panel * 16 + (size_t)v * DB__VN;
            acc[r * NP * DB__PV + v] =
                g->start ? DB__vload(g->start + i * g->lds + j) : DB__vset1(0.0f);
        }
    for (tap = 0; tap < g->taps; tap++) {
        const DB__T *a = (const DB__T *)g->a + row * lda + tap * g->a_tap;
        const DB__T *a4 = a + 4 * lda, *a8 = a + 8 * lda;
        const DB__T *b = (const DB__T *)g->b + panel * g->b_panel + tap * g->b_tap;
#define DB__STEP do { \
        DB__FN(gemm_step)(acc, a, a4, a8, lda, b, g->b_panel, MR, NP); \
        a += a_k, a4 += a_k, a8 += a_k, b += b_k, k += DB__K2; \
    } while (0)
        for (k = 0; k + 2 * DB__K2 <= g->k;) {
            if (ahead < MR) {
                DB__UNROLL for (v = 0; v < NP; v++)
                    DB__PREFETCH_WRITE(g->c + (row + (size_t)ahead) * g->ldc +
                                       (panel + (size_t)v) * 16);
                ahead++;
            }
            DB__STEP;
            DB__STEP;
        }
        if (k < g->k) DB__STEP;
#undef DB__STEP
    }
    DB__UNROLL for (r = 0; r < MR; r++)
        DB__UNROLL for (v = 0; v < NP * DB__PV; v++) {
            float *c = g->c + (row + (size_t)r) * g->ldc + panel * 16 + (size_t)v * DB__VN;
            DB__vstore(c, acc[r * NP * DB__PV + v]);
        }
}

/* All rows of a panel, or of DB__NP panels: tiles of DB__MR rows, but 8 + 8, not 12 + 4, and
   4 + 4, not 6 + 1 + 1. */
DB__KERNEL void DB__FN(gemm_rows)(const db__gemm *g, size_t panel, const int wide)
{
    size_t row = 0, left;
    while ((left = g->m - row) > 0) {
#define DB__TILE(MR) do { \
        if (wide) DB__FN(gemm_tile)(g, row, panel, MR, DB__NP); \
        else DB__FN(gemm_tile)(g, row, panel, MR, 1); \
        row += MR; \
    } while (0)
#if DB__MR > 8
        if (left >= DB__MR && left != 16) DB__TILE(DB__MR);
        else if (left >= 8) DB__TILE(8);
#elif DB__MR > 4
        if (left >= DB__MR && left != 8) DB__TILE(DB__MR);
#else
        if (left >= DB__MR) DB__TILE(DB__MR);
#endif
#if DB__MR > 4
        else if (left >= 4) DB__TILE(4);
#endif
        else DB__TILE(1);
#undef DB__TILE
    }
}

DB__KERNEL void DB__FN(gemm)(const db__gemm *g)
{
    size_t panel = 0;
    for (; panel + DB__NP <= g->panels; panel += DB__NP) DB__FN(gemm_rows)(g, panel, 1);
    for (; panel < g->panels; panel++) DB__FN(gemm_rows)(g, panel, 0);
}

#else
/* The same on the tile unit: 2 x 2 tiles of C, each 16 x 16, advance by 32 of k with four loads and
   four tile products. k is a multiple of 32 here. A last row block of fewer than 32 rows gets tiles
   of its heights, so that nothing outside A is read. */
static DB__AMX_TARGET void DB__FN(amx_configure)(int m0, int m1)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } t;
    int k;
    memset(&t, 0, sizeof t);
    t.palette = 1;
    for (k = 0; k < 8; k++) t.row_bytes[k] = 64, t.rows[k] = 16;
    t.rows[0] = t.rows[1] = t.rows[4] = (uint8_t)m0; /* C of the upper rows, A of the upper rows */
    t.rows[2] = t.rows[3] = t.rows[5] = (uint8_t)m1;
    __asm__ volatile("ldtilecfg %0" ::"m"(t));
}

static inline __attribute__((always_inline)) DB__AMX_TARGET void DB__FN(amx_block)(
    const db__gemm *g, size_t row, size_t panel, const int two_rows, const int two_panels)
{
    float *c = g->c + row * g->ldc + panel * 16;
    size_t tap, k, ldc = g->ldc * 4;
    if (g->start) {
        const float *start = g->start + row * g->lds + panel * 16;
        _tile_loadd(0, start, g->lds * 4);
        if (two_panels) _tile_loadd(1, start + 16, g->lds * 4);
        if (two_rows) _tile_loadd(2, start + 16 * g->lds, g->lds * 4);
        if (two_rows && two_panels) _tile_loadd(3, start + 16 * g->lds + 16, g->lds * 4);
    } else {
        _tile_zero(0);
        if (two_panels) _tile_zero(1);
        if (two_rows) _tile_zero(2);
        if (two_rows && two_panels) _tile_zero(3);
    }
    for (tap = 0; tap < g->taps; tap++) {
        const uint16_t *a = (const uint16_t *)g->a + row * g->lda + tap * g->a_tap;
        const uint16_t *b = (const uint16_t *)g->b + panel * g->b_panel + tap * g->b_tap;
        for (k = 0; k < g->k; k += 32, a += 32 * g->a_k, b += 32 * 16) {
            _tile_loadd(4, a, g->lda * 2);
            _tile_loadd(6, b, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (two_panels) {
                _tile_loadd(7, b + g->b_panel, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (two_rows) {
                _tile_loadd(5, a + 16 * g->lda, g->lda * 2);
                _tile_dpbf16ps(2, 5, 6);
                if (two_panels) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, c, ldc);
    if (two_panels) _tile_stored(1, c + 16, ldc);
    if (two_rows) _tile_stored(2, c + 16 * g->ldc, ldc);
    if (two_rows && two_panels) _tile_stored(3, c + 16 * g->ldc + 16, ldc);
}

static DB__AMX_TARGET void DB__FN(amx_gemm)(const db__gemm *g)
{
    size_t row, panel;
    DB__FN(amx_configure)(16, 16);
    for (row = 0; row < g->m; row += 32) {
        size_t left = g->m - row;
        int two = left > 16;
        if (left < 32) DB__FN(amx_configure)(two ? 16 : (int)left, two ? (int)left - 16 : 16);
        for (panel = 0; panel + 2 <= g->panels; panel += 2) {
            if (two) DB__FN(amx_block)(g, row, panel, 1, 1);
            else DB__FN(amx_block)(g, row, panel, 0, 1);
        }
        if (panel < g->panels) {
            if (two) DB__FN(amx_block)(g, row, panel, 1, 0);
            else DB__FN(amx_block)(g, row, panel, 0, 0);
        }
    }
    _tile_release();
}
#endif

/* Packs B[k][n] = in[k * by_k + n * by_n] into panels; k is filled up to k_padded with zeros and n
   to a multiple of 16. One version reads weights (always floats), the other activations. The full
   panels of both orders that occur go fast: rows of 16 neighbouring columns, and columns of 16
   neighbouring k. */

/* Two rows of 16 -> one row of 16 pairs (bf16), or one row as it is (f32). */
DB__INLINE void DB__FN(zip_rows)(DB__T *out, const DB__T *row, size_t next)
{
#ifdef DB__PASS_BF16
    DB__vzip_bf16(out, row, row + next);
#else
    (void)next;
    memcpy(out, row, 16 * sizeof *out);
#endif
}

/* 16 columns, `next` apart, each with 16 neighbouring words of k (numbers or pairs), -> 16 rows of
   a panel. */
DB__INLINE void DB__FN(zip_columns)(DB__T *out, const DB__T *column, size_t next)
{
    uint32_t tile[16][16];
    int j;
    for (j = 0; j < 16; j++) memcpy(tile[j], column + (size_t)j * next, sizeof tile[j]);
    DB__vturn(tile);
    memcpy(out, tile, sizeof tile);
}

DB__KERNEL void DB__FN(pack)(void *out_, size_t out_panel, const void *in_, size_t k, size_t n,
                             size_t by_k, size_t by_n, size_t k_padded)
{
    const DB__T *in = (const DB__T *)in_;
    size_t p, i, j, whole;
    for (p = 0; p * 16 < n; p++) {
        size_t width = DB__MIN(n - p * 16, 16);
        DB__T *o = (DB__T *)out_ + p * out_panel;
        const DB__T *s = in + p * 16 * by_n;
        if (width < 16) memset(o, 0, k_padded * 16 * sizeof *o);
        else
            memset(o + k / DB__K2 * DB__K2 * 16, 0,
                   (k_padded - k / DB__K2 * DB__K2) * 16 * sizeof *o);
        whole = width < 16 ? 0
            : by_n == 1    ? k / DB__K2 * DB__K2
            : by_k == 1    ? k / (16 * DB__K2) * (16 * DB__K2)
                           : 0;
        if (by_n == 1)
            for (i = 0; i < whole; i += DB__K2) DB__FN(zip_rows)(o + i * 16, s + i * by_k, by_k);
        else for (i = 0; i < whole; i += 16 * DB__K2) DB__FN(zip_columns)(o + i * 16, s + i, by_n);
        for (i = whole; i < k; i++)
            for (j = 0; j < width; j++)
                o[i / DB__K2 * DB__K2 * 16 + j * DB__K2 + i % DB__K2] = s[i * by_k + j * by_n];
    }
}

/* The same of f32 weights, rounded on the way, for one panel: n <= 16. */
DB__KERNEL void DB__FN(pack_weight)(void *panel, const float *in, size_t k, size_t n, size_t by_k,
                                    size_t by_n, size_t k_padded)
{
#ifdef DB__PASS_BF16
    /* two rows or 16 columns are rounded to bf16, then packed */
    size_t lines = by_n == 1 ? 2 : 16, length = by_n == 1 ? 16 : 32;
    size_t apart = by_n == 1 ? by_k : by_n;
    size_t at_once = by_n == 1 ? 2 : 32, whole = by_n == 1 || by_k == 1 ? k / at_once * at_once : 0;
    DB__T tile[16 * 32], *o = (DB__T *)panel;
    size_t i, j, v;
    if (n < 16) whole = 0;
    if (n < 16) memset(o, 0, k_padded * 16 * sizeof *o);
    else memset(o + k / 2 * 2 * 16, 0, (k_padded - k / 2 * 2) * 16 * sizeof *o);
    for (i = 0; i < whole; i += at_once) {
        const float *from = in + i * by_k;
        for (j = 0; j < lines; j++)
            for (v = 0; v < length; v += DB__VN)
                DB__ST(tile + j * length + v, DB__vload(from + j * apart + v));
        if (by_n == 1) DB__FN(zip_rows)(o + i * 16, tile, 16);
        else DB__FN(zip_columns)(o + i * 16, tile, 32);
    }
    for (i = whole; i < k; i++)
        for (j = 0; j < n; j++)
            o[i / 2 * 2 * 16 + j * 2 + i % 2] = DB__TO_T(in[i * by_k + j * by_n]);
#else
    DB__FN(pack)(panel, 0, in, k, n, by_k, by_n, k_padded);
#endif
}

/* out[j][i] = in[i][j] for rows x columns; rows of out are ld_out apart and filled with zeros up to
   rows_padded. */
DB__KERNEL void DB__FN(transpose)(void *out_, size_t ld_out, const void *in_, size_t ld_in,
                                  size_t rows, size_t columns, size_t rows_padded)
{
    enum { N = 16 * DB__K2 }; /* numbers in 16 words */
    const DB__T *in = (const DB__T *)in_;
    DB__T *out = (DB__T *)out_;
    size_t i, j, q;
    for (i = 0; i + N <= rows; i += N) {
        for (j = 0; j + 16 <= columns; j += 16) {
            uint32_t tile[16][16]; /* 16 rows, or pairs of rows, of 16 columns */
            for (q = 0; q < 16; q++)
                DB__FN(zip_rows)
                ((DB__T *)(void *)tile[q], in + (i + q * DB__K2) * ld_in + j, ld_in);
            DB__vturn(tile);
            for (q = 0; q < 16; q++) memcpy(out + (j + q) * ld_out + i, tile[q], sizeof tile[q]);
        }
        for (; j < columns; j++)
            for (q = i; q < i + N; q++) out[j * ld_out + q] = in[q * ld_in + j];
    }
    for (; i < rows; i++)
        for (j = 0; j < columns; j++) out[j * ld_out + i] = in[i * ld_in + j];
    if (rows < rows_padded)
        for (j = 0; j < columns; j++)
            memset(out + j * ld_out + rows, 0, (rows_padded - rows) * sizeof *out);
}

/* y[rows][n] (+)= c + bias + residual; rows of y and residual are ld apart, of c ldc. */
DB__KERNEL void DB__FN(epilogue)(void *y_, size_t ld, const float *c, size_t ldc, const float *bias,
                                 const void *residual_, size_t rows, size_t n, int add)
{
    const DB__T *residual = (const DB__T *)residual_;
    DB__T *y = (DB__T *)y_;
    size_t r, i;
    for (r = 0; r < rows; r++)
        for (i = 0; i < n; i += DB__VN) {
            DB__V v, w;
            DB__FN(loadf_n)(&v, c + r * ldc + i, n - i);
            if (bias) DB__FN(loadf_n)(&w, bias + i, n - i), v = DB__vadd(v, w);
            if (residual) DB__FN(load_n)(&w, residual + r * ld + i, n - i), v = DB__vadd(v, w);
            if (add) DB__FN(load_n)(&w, y + r * ld + i, n - i), v = DB__vadd(v, w);
            DB__FN(store_n)(y + r * ld + i, &v, n - i);
        }
}

#ifndef DB__PASS_BF16
/* The changes of basis of Winograd's F(2x2, 3x3), each channel by itself:

          1  0 -1  0          1   0   0
     B' = 0  1  1  0     G =  1/2 1/2 1/2     A' = 1 1  1  0
          0 -1  1  0          1/2-1/2 1/2          0 1 -1 -1
          0  1  0 -1          0   0   1                       */

/* u[16][C][16] = G g G', from g[3][3][C][16] */
DB__KERNEL void DB__FN(winograd_weight)(float *u, const float *g, size_t C)
{
    DB__V half = DB__vset1(0.5f);
    size_t i, n = C * 16;
    int r, q;
    for (i = 0; i < n; i += DB__VN) {
        DB__V t[4][3], w[3];
        DB__UNROLL for (q = 0; q < 3; q++) {
            DB__UNROLL for (r = 0; r < 3; r++) w[r] = DB__vload(g + (size_t)(r * 3 + q) * n + i);
            t[0][q] = w[0], t[3][q] = w[2];
            w[0] = DB__vmul(DB__vadd(w[0], w[2]), half), w[1] = DB__vmul(w[1], half);
            t[1][q] = DB__vadd(w[0], w[1]), t[2][q] = DB__vsub(w[0], w[1]);
        }
        DB__UNROLL for (r = 0; r < 4; r++) {
            float *out = u + (size_t)r * 4 * n + i;
            w[0] = DB__vmul(DB__vadd(t[r][0], t[r][2]), half), w[1] = DB__vmul(t[r][1], half);
            DB__vstore(out, t[r][0]), DB__vstore(out + 3 * n, t[r][2]);
            DB__vstore(out + n, DB__vadd(w[0], w[1]));
            DB__vstore(out + 2 * n, DB__vsub(w[0], w[1]));
        }
    }
}

/* The gradient of winograd_weight, for n outputs: dw (+)= G' s G from s[16][n][C]; dw is
   [3][n][3 C], its three rows of the kernel `row` floats apart. */
DB__KERNEL void DB__FN(winograd_weight_back)(float *dw, size_t row, const float *s, size_t n,
                                             size_t C, int add)
{
    DB__V half = DB__vset1(0.5f);
    size_t oc, i;
    int r, q;
    for (oc = 0; oc < n; oc++, dw += 3 * C)
        for (i = 0; i < C; i += DB__VN) {
            DB__V t[3][4], o[3];
            DB__UNROLL for (q = 0; q < 4; q++) {
                const float *at = s + ((size_t)q * n + oc) * C + i;
                DB__V s1 = DB__vmul(DB__vload(at + 4 * n * C), half),
                      s2 = DB__vmul(DB__vload(at + 8 * n * C), half), even = DB__vadd(s1, s2);
                t[0][q] = DB__vadd(DB__vload(at), even), t[1][q] = DB__vsub(s1, s2);
                t[2][q] = DB__vadd(even, DB__vload(at + 12 * n * C));
            }
            DB__UNROLL for (r = 0; r < 3; r++) {
                float *out = dw + (size_t)r * row + i;
                DB__V t1 = DB__vmul(t[r][1], half), t2 = DB__vmul(t[r][2], half);
                o[0] = DB__vadd(t[r][0], DB__vadd(t1, t2)), o[1] = DB__vsub(t1, t2);
                o[2] = DB__vadd(DB__vadd(t1, t2), t[r][3]);
                DB__UNROLL for (q = 0; q < 3; q++) {
                    if (add) o[q] = DB__vadd(o[q], DB__vload(out + (size_t)q * C));
                    DB__vstore(out + (size_t)q * C, o[q]);
                }
            }
        }
}

/* A row of tiles: v = B' d B of 4 lines of pixels x. Positions are `position` apart, tiles `tile`,
   every 16 channels `panel`. */
DB__KERNEL void DB__FN(winograd_input)(float *v, size_t position, size_t tile, size_t panel,
                                       const float *x, size_t line, size_t tiles, size_t C)
{
    size_t i;
    int r, q;
    for (; tiles > 0; tiles--, x += 2 * C, v += tile)
        for (i = 0; i < C; i += DB__VN) {
            DB__V t[4][4], d[4];
            DB__UNROLL for (q = 0; q < 4; q++) {
                DB__UNROLL for (r = 0; r < 4; r++)
                    d[r] = DB__vload(x + (size_t)r * line + (size_t)q * C + i);
                t[0][q] = DB__vsub(d[0], d[2]), t[1][q] = DB__vadd(d[1], d[2]);
                t[2][q] = DB__vsub(d[2], d[1]), t[3][q] = DB__vsub(d[1], d[3]);
            }
            DB__UNROLL for (r = 0; r < 4; r++) {
                float *out = v + (size_t)r * 4 * position + i / 16 * panel + i % 16;
                DB__vstore(out, DB__vsub(t[r][0], t[r][2]));
                DB__vstore(out + position, DB__vadd(t[r][1], t[r][2]));
                DB__vstore(out + 2 * position, DB__vsub(t[r][2], t[r][1]));
                DB__vstore(out + 3 * position, DB__vsub(t[r][1], t[r][3]));
            }
        }
}

/* A row of tiles: y (+)= A' m A + bias + residual for up to 2 rows of pixels; m[16][position], each
   position [tiles][n]. */
DB__KERNEL void DB__FN(winograd_output)(float *y, size_t line, size_t ld, size_t rows,
                                        size_t columns, const float *m, size_t position, size_t n,
                                        const float *bias, const float *residual, int add)
{
    size_t x, i, r, q;
    for (x = 0; x < columns; x += 2, m += n)
        for (i = 0; i < n; i += DB__VN) {
            DB__V t[2][4], o[2][2], b = bias ? DB__vload(bias + i) : DB__vset1(0.0f);
            DB__UNROLL for (q = 0; q < 4; q++) {
                const float *at = m + q * position + i;
                DB__V a1 = DB__vload(at + 4 * position), a2 = DB__vload(at + 8 * position);
                t[0][q] = DB__vadd(DB__vload(at), DB__vadd(a1, a2));
                t[1][q] = DB__vsub(DB__vsub(a1, a2), DB__vload(at + 12 * position));
            }
            DB__UNROLL for (r = 0; r < 2; r++) {
                o[r][0] = DB__vadd(DB__vadd(t[r][0], b), DB__vadd(t[r][1], t[r][2]));
                o[r][1] = DB__vadd(DB__vsub(t[r][1], t[r][2]), DB__vsub(b, t[r][3]));
            }
            for (r = 0; r < rows; r++)
                for (q = 0; q < 2 && x + q < columns; q++) {
                    size_t at = r * line + (x + q) * ld + i;
                    DB__V s = o[r][q];
                    if (residual) s = DB__vadd(s, DB__vload(residual + at));
                    if (add) s = DB__vadd(s, DB__vload(y + at));
                    DB__vstore(y + at, s);
                }
        }
}

/* The gradient of winograd_output: m = A dy A' of up to 2 rows of pixels, zeros beyond them and the
   last column; m[16][position], each position [tiles][n]. */
DB__KERNEL void DB__FN(winograd_output_back)(float *m, size_t position, const float *dy,
                                             size_t line, size_t ld, size_t rows, size_t columns,
                                             size_t n)
{
    DB__V zero = DB__vset1(0.0f);
    size_t x, i, q;
    int r;
    for (x = 0; x < columns; x += 2, m += n, dy += 2 * ld)
        for (i = 0; i < n; i += DB__VN) {
            DB__V t[4][2];
            DB__UNROLL for (q = 0; q < 2; q++) {
                int inside = x + q < columns;
                t[0][q] = inside ? DB__vload(dy + q * ld + i) : zero;
                t[3][q] = inside && rows > 1 ? DB__vload(dy + line + q * ld + i) : zero;
                t[1][q] = DB__vadd(t[0][q], t[3][q]), t[2][q] = DB__vsub(t[0][q], t[3][q]);
                t[3][q] = DB__vsub(zero, t[3][q]);
            }
            DB__UNROLL for (r = 0; r < 4; r++) {
                float *out = m + (size_t)r * 4 * position + i;
                DB__vstore(out, t[r][0]);
                DB__vstore(out + position, DB__vadd(t[r][0], t[r][1]));
                DB__vstore(out + 2 * position, DB__vsub(t[r][0], t[r][1]));
                DB__vstore(out + 3 * position, DB__vsub(zero, t[r][1]));
            }
        }
}
#endif

/* sum[C] += the column sums of x[n][C] */
DB__KERNEL void DB__FN(column_sums)(float *sum, const void *x_, size_t n, size_t C)
{
    const DB__T *x = (const DB__T *)x_;
    size_t i, p;
    for (p = 0; p < n; p++)
        for (i = 0; i < C; i += DB__VN) {
            DB__V s, v;
            DB__FN(loadf_n)(&s, sum + i, C - i);
            DB__FN(load_n)(&v, x + p * C + i, C - i);
            s = DB__vadd(s, v);
            DB__FN(storef_n)(sum + i, &s, C - i);
        }
}

/* ---- group normalisation ------------------------------------------------------------------------
   Memory is walked in order, pixel by pixel; what belongs to the channels comes from the first
   cache. */

/* Per channel, over n pixels: the sums of d and d^2, d = x - x0 with x0 the channel's first value,
   which keeps the variance exact where the mean is far from zero (but see db__norm_anew). */
DB__KERNEL void DB__FN(norm_sums)(float *sum, float *square, const void *x0_, const void *x_,
                                  size_t n, size_t C)
{
    const DB__T *x0 = (const DB__T *)x0_, *x = (const DB__T *)x_;
    size_t i, p;
    memset(sum, 0, C * sizeof *sum);
    memset(square, 0, C * sizeof *square);
    for (p = 0; p < n; p++)
        for (i = 0; i < C; i += DB__VN) {
            DB__V s, q, base, d;
            DB__FN(loadf_n)(&s, sum + i, C - i);
            DB__FN(loadf_n)(&q, square + i, C - i);
            DB__FN(load_n)(&base, x0 + i, C - i);
            DB__FN(load_n)(&d, x + p * C + i, C - i);
            d = DB__vsub(d, base);
            s = DB__vadd(s, d);
            q = DB__vfma(d, d, q);
            DB__FN(storef_n)(sum + i, &s, C - i);
            DB__FN(storef_n)(square + i, &q, C - i);
        }
}

/* y = act((x - mean) scale + shift), all three per channel */
DB__INLINE void DB__FN(norm_apply_at)(DB__T *y, const DB__T *x, size_t n, const float *scale,
                                      const float *shift, const float *mean, const int act,
                                      const int U)
{
    DB__V a[2], b[2], m[2], v[2];
    int u;
    DB__FN(loadf_u)(a, scale, n, U);
    DB__FN(loadf_u)(b, shift, n, U);
    DB__FN(loadf_u)(m, mean, n, U);
    DB__FN(load_u)(v, x, n, U);
    DB__EACH v[u] = DB__vfma(DB__vsub(v[u], m[u]), a[u], b[u]);
    DB__FN(activate)(v, act, U);
    DB__FN(store_u)(y, v, n, U);
}

DB__KERNEL void DB__FN(norm_apply)(void *y_, const void *x_, size_t n, size_t C, const float *scale,
                                   const float *shift, const float *mean, int act)
{
    const DB__T *x = (const DB__T *)x_;
    DB__T *y = (DB__T *)y_;
    size_t i, p;
#define DB__AT(i, U) \
    DB__FN(norm_apply_at) \
    (y + p * C + i, x + p * C + i, C - i, scale + i, shift + i, mean + i, DB__ACT, U)
#define DB__BODY for (p = 0; p < n; p++) { DB__WALK(i, C, DB__AT); }
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* With u = (x - mean) scale + shift: g = dy act'(u), sum[C] = sum of g, dot[C] = sum of
   g (x - mean). */
DB__INLINE void DB__FN(norm_back_sums_at)(float *g_out, float *sum, float *dot, const DB__T *x,
                                          const DB__T *dy, size_t n, const float *scale,
                                          const float *shift, const float *mean, const int act,
                                          const int U)
{
    DB__V s[2], d[2], a[2], b[2], v[2], g[2], w[2];
    int u;
    DB__FN(loadf_u)(a, scale, n, U);
    DB__FN(loadf_u)(b, shift, n, U);
    DB__FN(loadf_u)(s, mean, n, U);
    DB__FN(load_u)(v, x, n, U);
    DB__FN(load_u)(g, dy, n, U);
    DB__EACH v[u] = DB__vsub(v[u], s[u]);
    DB__EACH w[u] = DB__vfma(v[u], a[u], b[u]);
    DB__FN(activate_slope)(w, act, U);
    DB__FN(loadf_u)(s, sum, n, U);
    DB__FN(loadf_u)(d, dot, n, U);
    DB__EACH g[u] = DB__vmul(g[u], w[u]);
    DB__EACH s[u] = DB__vadd(s[u], g[u]);
    DB__EACH d[u] = DB__vfma(g[u], v[u], d[u]);
    DB__FN(storef_u)(sum, s, n, U);
    DB__FN(storef_u)(dot, d, n, U);
    DB__FN(storef_u)(g_out, g, n, U);
}

DB__KERNEL void DB__FN(norm_back_sums)(float *g, float *sum, float *dot, const void *x_,
                                       const void *dy_, size_t n, size_t C, const float *scale,
                                       const float *shift, const float *mean, int act)
{
    const DB__T *x = (const DB__T *)x_, *dy = (const DB__T *)dy_;
    size_t i, p;
    memset(sum, 0, C * sizeof *sum);
    memset(dot, 0, C * sizeof *dot);
#define DB__AT(i, U) \
    DB__FN(norm_back_sums_at) \
    (g + p * C + i, sum + i, dot + i, x + p * C + i, dy + p * C + i, C - i, scale + i, shift + i, \
     mean + i, DB__ACT, U)
#define DB__BODY for (p = 0; p < n; p++) { DB__WALK(i, C, DB__AT); }
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* dx (+)= scale g + c0 + c1 (x - mean), the constants per channel */
DB__INLINE void DB__FN(norm_back_apply_at)(DB__T *dx, const DB__T *x, const float *g, size_t n,
                                           const float *scale, const float *mean, const float *c0,
                                           const float *c1, int add, const int U)
{
    DB__V a[2], b[2], v[2], y[2];
    int u;
    DB__FN(load_u)(v, x, n, U);
    DB__FN(loadf_u)(b, mean, n, U);
    DB__EACH v[u] = DB__vsub(v[u], b[u]);
    DB__FN(loadf_u)(b, c0, n, U);
    DB__FN(loadf_u)(a, c1, n, U);
    DB__EACH v[u] = DB__vfma(a[u], v[u], b[u]);
    DB__FN(loadf_u)(a, scale, n, U);
    DB__FN(loadf_u)(y, g, n, U);
    DB__EACH y[u] = DB__vfma(y[u], a[u], v[u]);
    if (add) {
        DB__FN(load_u)(v, dx, n, U);
        DB__EACH y[u] = DB__vadd(y[u], v[u]);
    }
    DB__FN(store_u)(dx, y, n, U);
}

DB__KERNEL void DB__FN(norm_back_apply)(void *dx_, const void *x_, const float *g, size_t n,
                                        size_t C, const float *scale, const float *mean,
                                        const float *c0, const float *c1, int add)
{
    const DB__T *x = (const DB__T *)x_;
    DB__T *dx = (DB__T *)dx_;
    size_t i, p;
#define DB__AT(i, U) \
    DB__FN(norm_back_apply_at) \
    (dx + p * C + i, x + p * C + i, g + p * C + i, C - i, scale + i, mean + i, c0 + i, c1 + i, \
     add, U)
    for (p = 0; p < n; p++) { DB__WALK(i, C, DB__AT); }
#undef DB__AT
}

/* ---- layer normalisation (and RMS: no mean) -------------------------------------------------- */

/* One row: y = (x - mean) rstd w + b; stats gets mean and rstd. */
DB__KERNEL void DB__FN(layer_norm)(void *y_, float stats[2], const void *x_, const float *w,
                                   const float *b, size_t C, float eps, int rms)
{
    const DB__T *x = (const DB__T *)x_;
    DB__T *y = (DB__T *)y_;
    DB__V s = DB__vset1(0.0f), v, a, m;
    float mean = 0, rstd;
    size_t i;
    if (!rms) {
        for (i = 0; i < C; i += DB__VN) DB__FN(load_n)(&v, x + i, C - i), s = DB__vadd(s, v);
        mean = DB__FN(sum)(&s) / (float)C;
    }
    s = DB__vset1(0.0f);
    for (i = 0; i < C; i += DB__VN) {
        float lane[DB__VN];
        size_t k;
        DB__FN(load_n)(&v, x + i, C - i);
        v = DB__vsub(v, DB__vset1(mean));
        v = DB__vmul(v, v);
        if (C - i < DB__VN) { /* lanes past the end hold mean^2 by now */
            DB__vstore(lane, v);
            for (k = C - i; k < DB__VN; k++) lane[k] = 0;
            v = DB__vload(lane);
        }
        s = DB__vadd(s, v);
    }
    rstd = 1.0f / sqrtf(DB__FN(sum)(&s) / (float)C + eps);
    for (i = 0; i < C; i += DB__VN) {
        DB__FN(load_n)(&v, x + i, C - i);
        DB__FN(loadf_n)(&a, w + i, C - i);
        v = DB__vmul(DB__vmul(DB__vsub(v, DB__vset1(mean)), DB__vset1(rstd)), a);
        if (b) DB__FN(loadf_n)(&m, b + i, C - i), v = DB__vadd(v, m);
        DB__FN(store_n)(y + i, &v, C - i);
    }
    stats[0] = mean;
    stats[1] = rstd;
}

/* One row: dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy w; dw += dy xhat, db += dy. */
DB__KERNEL void DB__FN(layer_norm_back)(void *dx_, float *dw, float *dbias, const void *dy_,
                                        const void *x_, const float stats[2], const float *w,
                                        size_t C, int rms, int add)
{
    const DB__T *dy = (const DB__T *)dy_, *x = (const DB__T *)x_;
    DB__T *dx = (DB__T *)dx_;
    DB__V sum = DB__vset1(0.0f), dot = sum, g, h, a, v;
    DB__V mean = DB__vset1(stats[0]), rstd = DB__vset1(stats[1]);
    size_t i;
    for (i = 0; i < C; i += DB__VN) {
        DB__FN(load_n)(&g, dy + i, C - i);
        DB__FN(load_n)(&h, x + i, C - i);
        DB__FN(loadf_n)(&a, w + i, C - i);
        h = DB__vmul(DB__vsub(h, mean), rstd);
        if (dw) {
            DB__FN(loadf_n)(&v, dw + i, C - i);
            v = DB__vfma(g, h, v);
            DB__FN(storef_n)(dw + i, &v, C - i);
        }
        if (dbias) {
            DB__FN(loadf_n)(&v, dbias + i, C - i);
            v = DB__vadd(v, g);
            DB__FN(storef_n)(dbias + i, &v, C - i);
        }
        g = DB__vmul(g, a); /* zero past the end, and so is all that follows */
        sum = DB__vadd(sum, g);
        dot = DB__vfma(g, h, dot);
    }
    if (!dx) return;
    sum = DB__vset1(rms ? 0.0f : DB__FN(sum)(&sum) / (float)C);
    dot = DB__vset1(DB__FN(sum)(&dot) / (float)C);
    for (i = 0; i < C; i += DB__VN) {
        DB__FN(load_n)(&g, dy + i, C - i);
        DB__FN(load_n)(&h, x + i, C - i);
        DB__FN(loadf_n)(&a, w + i, C - i);
        h = DB__vmul(DB__vsub(h, mean), rstd);
        g = DB__vsub(DB__vsub(DB__vmul(g, a), sum), DB__vmul(h, dot));
        g = DB__vmul(g, rstd);
        if (add) DB__FN(load_n)(&v, dx + i, C - i), g = DB__vadd(g, v);
        DB__FN(store_n)(dx + i, &g, C - i);
    }
}

/* ---- elementwise ----------------------------------------------------------------------------- */

DB__INLINE void DB__FN(act_at)(DB__T *y, const DB__T *x, size_t n, const int act, const int U)
{
    DB__V v[2];
    DB__FN(load_u)(v, x, n, U);
    DB__FN(activate)(v, act, U);
    DB__FN(store_u)(y, v, n, U);
}

DB__KERNEL void DB__FN(act)(void *y_, const void *x_, size_t n, int act)
{
    const DB__T *x = (const DB__T *)x_;
    DB__T *y = (DB__T *)y_;
    size_t i;
#define DB__AT(i, U) DB__FN(act_at)(y + i, x + i, n - i, DB__ACT, U)
#define DB__BODY DB__WALK(i, n, DB__AT);
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* dx (+)= dy act'(x) */
DB__INLINE void DB__FN(act_back_at)(DB__T *dx, const DB__T *dy, const DB__T *x, size_t n,
                                    const int act, int add, const int U)
{
    DB__V v[2], g[2];
    int u;
    DB__FN(load_u)(v, x, n, U);
    DB__FN(activate_slope)(v, act, U);
    DB__FN(load_u)(g, dy, n, U);
    DB__EACH v[u] = DB__vmul(v[u], g[u]);
    if (add) {
        DB__FN(load_u)(g, dx, n, U);
        DB__EACH v[u] = DB__vadd(v[u], g[u]);
    }
    DB__FN(store_u)(dx, v, n, U);
}

DB__KERNEL void DB__FN(act_back)(void *dx_, const void *dy_, const void *x_, size_t n, int act,
                                 int add)
{
    const DB__T *dy = (const DB__T *)dy_, *x = (const DB__T *)x_;
    DB__T *dx = (DB__T *)dx_;
    size_t i;
#define DB__AT(i, U) DB__FN(act_back_at)(dx + i, dy + i, x + i, n - i, DB__ACT, add, U)
#define DB__BODY DB__WALK(i, n, DB__AT);
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* Of a row x [values C | gates C]: y = values act(gates) */
DB__INLINE void DB__FN(gate_at)(DB__T *y, const DB__T *x, size_t C, size_t n, const int act,
                                const int U)
{
    DB__V v[2], g[2];
    int u;
    DB__FN(load_u)(v, x, n, U);
    DB__FN(load_u)(g, x + C, n, U);
    DB__FN(activate)(g, act, U);
    DB__EACH v[u] = DB__vmul(v[u], g[u]);
    DB__FN(store_u)(y, v, n, U);
}

DB__KERNEL void DB__FN(gate)(void *y_, const void *x_, size_t C, int act)
{
    const DB__T *x = (const DB__T *)x_;
    DB__T *y = (DB__T *)y_;
    size_t i;
#define DB__AT(i, U) DB__FN(gate_at)(y + i, x + i, C, C - i, DB__ACT, U)
#define DB__BODY DB__WALK(i, C, DB__AT);
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* dx (+)= [dy act(gates) | dy values act'(gates)] */
DB__INLINE void DB__FN(gate_back_at)(DB__T *dx, const DB__T *dy, const DB__T *x, size_t C, size_t n,
                                     const int act, int add, const int U)
{
    DB__V v[2], g[2], slope[2], d[2];
    int u;
    DB__FN(load_u)(v, x, n, U);
    DB__FN(load_u)(g, x + C, n, U);
    DB__FN(load_u)(d, dy, n, U);
    DB__EACH slope[u] = g[u];
    DB__FN(activate)(g, act, U);
    DB__FN(activate_slope)(slope, act, U);
    DB__EACH g[u] = DB__vmul(d[u], g[u]);
    DB__EACH slope[u] = DB__vmul(DB__vmul(d[u], v[u]), slope[u]);
    if (add) {
        DB__FN(load_u)(v, dx, n, U);
        DB__FN(load_u)(d, dx + C, n, U);
        DB__EACH g[u] = DB__vadd(g[u], v[u]);
        DB__EACH slope[u] = DB__vadd(slope[u], d[u]);
    }
    DB__FN(store_u)(dx, g, n, U);
    DB__FN(store_u)(dx + C, slope, n, U);
}

DB__KERNEL void DB__FN(gate_back)(void *dx_, const void *dy_, const void *x_, size_t C, int act,
                                  int add)
{
    const DB__T *dy = (const DB__T *)dy_, *x = (const DB__T *)x_;
    DB__T *dx = (DB__T *)dx_;
    size_t i;
#define DB__AT(i, U) DB__FN(gate_back_at)(dx + i, dy + i, x + i, C, C - i, DB__ACT, add, U)
#define DB__BODY DB__WALK(i, C, DB__AT);
    DB__SWITCH_ACT(act)
#undef DB__BODY
#undef DB__AT
}

/* y (+)= a b */
DB__KERNEL void DB__FN(mul)(void *y_, const void *a_, const void *b_, size_t n, int add)
{
    const DB__T *a = (const DB__T *)a_, *b = (const DB__T *)b_;
    DB__T *y = (DB__T *)y_;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V v, w;
        DB__FN(load_n)(&v, a + i, n - i);
        DB__FN(load_n)(&w, b + i, n - i);
        v = DB__vmul(v, w);
        if (add) DB__FN(load_n)(&w, y + i, n - i), v = DB__vadd(v, w);
        DB__FN(store_n)(y + i, &v, n - i);
    }
}

/* y (+)= alpha x + beta z; z may be NULL */
DB__KERNEL void DB__FN(axpby)(void *y_, const void *x_, const void *z_, float alpha, float beta,
                              size_t n, int add)
{
    const DB__T *x = (const DB__T *)x_, *z = (const DB__T *)z_;
    DB__T *y = (DB__T *)y_;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V v, w;
        DB__FN(load_n)(&v, x + i, n - i);
        v = DB__vmul(v, DB__vset1(alpha));
        if (z) DB__FN(load_n)(&w, z + i, n - i), v = DB__vfma(w, DB__vset1(beta), v);
        if (add) DB__FN(load_n)(&w, y + i, n - i), v = DB__vadd(v, w);
        DB__FN(store_n)(y + i, &v, n - i);
    }
}

/* y (+)= x, between data types */
DB__KERNEL void DB__FN(from_f32)(void *y_, const float *x, size_t n, int add)
{
    DB__T *y = (DB__T *)y_;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V v, w;
        DB__FN(loadf_n)(&v, x + i, n - i);
        if (add) DB__FN(load_n)(&w, y + i, n - i), v = DB__vadd(v, w);
        DB__FN(store_n)(y + i, &v, n - i);
    }
}

DB__KERNEL void DB__FN(to_f32)(float *y, const void *x_, size_t n, int add)
{
    const DB__T *x = (const DB__T *)x_;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V v, w;
        DB__FN(load_n)(&v, x + i, n - i);
        if (add) DB__FN(loadf_n)(&w, y + i, n - i), v = DB__vadd(v, w);
        DB__FN(storef_n)(y + i, &v, n - i);
    }
}

/* y (+)= scale (a + b + c + d): 2 x 2 pooling of one pixel */
DB__KERNEL void DB__FN(pool)(void *y_, const void *a_, const void *b_, const void *c_,
                             const void *d_, float scale, size_t n, int add)
{
    const DB__T *a = (const DB__T *)a_, *b = (const DB__T *)b_, *c = (const DB__T *)c_,
                *d = (const DB__T *)d_;
    DB__T *y = (DB__T *)y_;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V v, w;
        DB__FN(load_n)(&v, a + i, n - i);
        DB__FN(load_n)(&w, b + i, n - i), v = DB__vadd(v, w);
        DB__FN(load_n)(&w, c + i, n - i), v = DB__vadd(v, w);
        DB__FN(load_n)(&w, d + i, n - i), v = DB__vadd(v, w);
        v = DB__vmul(v, DB__vset1(scale));
        if (add) DB__FN(load_n)(&w, y + i, n - i), v = DB__vadd(v, w);
        DB__FN(store_n)(y + i, &v, n - i);
    }
}

/* ---- softmax --------------------------------------------------------------------------------- */

/* Scores: scale s + bias + mask */
DB__INLINE void DB__FN(scores_at)(DB__V *v, const float *s, const float *bias, const float *mask,
                                  size_t n, float scale, const int U)
{
    DB__V w[2];
    int u;
    DB__FN(loadf_u)(v, s, n, U);
    DB__EACH v[u] = DB__vmul(v[u], DB__vset1(scale));
    if (bias) {
        DB__FN(loadf_u)(w, bias, n, U);
        DB__EACH v[u] = DB__vadd(v[u], w[u]);
    }
    if (mask) {
        DB__FN(loadf_u)(w, mask, n, U);
        DB__EACH v[u] = DB__vadd(v[u], w[u]);
    }
}

/* p = e^(s - max), added to sum */
DB__INLINE void DB__FN(softmax_at)(DB__T *p, const float *s, DB__V *sum, float max, size_t n,
                                   const int U)
{
    DB__V v[2];
    int u;
    DB__FN(loadf_u)(v, s, n, U);
    DB__EACH v[u] = DB__vsub(v[u], DB__vset1(max));
    DB__FN(exp)(v, U);
    DB__FN(store_u)(p, v, n, U);
    if (n < DB__VN) { /* lanes past the end count nothing */
        float lane[DB__VN];
        DB__vstore(lane, v[0]);
        memset(lane + n, 0, (DB__VN - n) * sizeof *lane);
        v[0] = DB__vload(lane);
    }
    DB__EACH sum[u] = DB__vadd(sum[u], v[u]);
}

/* One row's next scores s[n], plus bias and mask where given: p = e^(scale s + bias + mask - max),
   padded with zeros to n_padded, with *max the largest score of the row so far and *sum the sum of
   its exponentials. Returns what to multiply earlier ones of the row by, since *max has grown. */
DB__KERNEL float DB__FN(softmax)(void *p_, float *s, const float *bias, const float *mask, size_t n,
                                 size_t n_padded, float scale, float *max, float *sum)
{
    DB__T *p = (DB__T *)p_;
    DB__V v, top = DB__vset1(*max), total[2];
    float lane[DB__VN], most = *max, grown = 1;
    size_t i;
    int k;
    for (i = 0; i < n; i += DB__VN) {
        DB__FN(scores_at)
        (&v, s + i, bias ? bias + i : NULL, mask ? mask + i : NULL, n - i, scale, 1);
        DB__FN(storef_n)(s + i, &v, n - i);
        if (n - i >= DB__VN) top = DB__vmax(top, v);
        else for (k = 0; (size_t)k < n - i; k++) most = DB__MAX(most, s[i + (size_t)k]);
    }
    DB__vstore(lane, top);
    for (k = 0; k < DB__VN; k++) most = DB__MAX(most, lane[k]);
    total[0] = total[1] = DB__vset1(0.0f);
#define DB__AT(i, U) DB__FN(softmax_at)(p + i, s + i, total, most, n - i, U)
    DB__WALK(i, n, DB__AT);
#undef DB__AT
    for (i = n; i < n_padded; i++) p[i] = 0;
    total[0] = DB__vadd(total[0], total[1]);
    if (most > *max) grown = expf(*max - most);
    *max = most;
    *sum = *sum * grown + DB__FN(sum)(total);
    return grown;
}

/* The same row in the backward pass: p from the scores and the stored logarithm, and
   ds = p (dp - delta); both padded with zeros. ds leaves `scale` to its users. */
DB__INLINE void DB__FN(softmax_back_at)(DB__T *p, DB__T *ds, const float *s, const float *dp,
                                        const float *bias, const float *mask, float lse,
                                        float delta, size_t n, float scale, const int U)
{
    DB__V v[2], w[2];
    int u;
    DB__FN(scores_at)(v, s, bias, mask, n, scale, U);
    DB__EACH v[u] = DB__vsub(v[u], DB__vset1(lse));
    DB__FN(exp)(v, U);
    DB__FN(loadf_u)(w, dp, n, U);
    DB__EACH w[u] = DB__vmul(v[u], DB__vsub(w[u], DB__vset1(delta)));
    DB__FN(store_u)(p, v, n, U);
    DB__FN(store_u)(ds, w, n, U);
}

DB__KERNEL void DB__FN(softmax_back)(void *p_, void *ds_, const float *s, const float *dp,
                                     const float *bias, const float *mask, float lse, float delta,
                                     size_t n, size_t n_padded, float scale)
{
    DB__T *p = (DB__T *)p_, *ds = (DB__T *)ds_;
    size_t i;
#define DB__AT(i, U) \
    DB__FN(softmax_back_at) \
    (p + i, ds + i, s + i, dp + i, bias ? bias + i : NULL, mask ? mask + i : NULL, lse, delta, \
     n - i, scale, U)
    DB__WALK(i, n, DB__AT);
#undef DB__AT
    for (i = n; i < n_padded; i++) p[i] = ds[i] = 0;
}

DB__KERNEL float DB__FN(dot)(const void *a_, const void *b_, size_t n)
{
    const DB__T *a = (const DB__T *)a_, *b = (const DB__T *)b_;
    DB__V s = DB__vset1(0.0f), v, w;
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__FN(load_n)(&v, a + i, n - i);
        DB__FN(load_n)(&w, b + i, n - i);
        s = DB__vfma(v, w, s);
    }
    return DB__FN(sum)(&s);
}

/* ---- the optimiser (f32 only) ---------------------------------------------------------------- */

#ifndef DB__PASS_BF16
/* AdamW (Loshchilov and Hutter, 2019): one pass over the weights and both moments. */
DB__KERNEL void DB__FN(adamw)(float *w, float *m, float *v, const float *g, size_t n,
                              const db__adamw_step *a)
{
    DB__V b1 = DB__vset1(a->beta1), b2 = DB__vset1(a->beta2), c1 = DB__vset1(1 - a->beta1),
          c2 = DB__vset1(1 - a->beta2);
    DB__V keep = DB__vset1(1 - a->lr * a->weight_decay), rate = DB__vset1(a->lr / a->correction1);
    DB__V root = DB__vset1(1.0f / a->correction2), eps = DB__vset1(a->eps),
          clip = DB__vset1(a->grad_scale);
    size_t i;
    for (i = 0; i < n; i += DB__VN) {
        DB__V gv, mv, vv, wv;
        DB__FN(loadf_n)(&gv, g + i, n - i);
        DB__FN(loadf_n)(&mv, m + i, n - i);
        DB__FN(loadf_n)(&vv, v + i, n - i);
        DB__FN(loadf_n)(&wv, w + i, n - i);
        gv = DB__vmul(gv, clip);
        mv = DB__vfma(b1, mv, DB__vmul(c1, gv));
        vv = DB__vfma(b2, vv, DB__vmul(c2, DB__vmul(gv, gv)));
        gv = DB__vdiv(DB__vmul(rate, mv), DB__vadd(DB__vsqrt(DB__vmul(vv, root)), eps));
        wv = DB__vsub(DB__vmul(wv, keep), gv);
        DB__FN(storef_n)(m + i, &mv, n - i);
        DB__FN(storef_n)(v + i, &vv, n - i);
        DB__FN(storef_n)(w + i, &wv, n - i);
    }
}
#endif

static const db__kernels DB__FN(table) = {
#ifdef DB__AMX_TARGET
    32,
    DB__PAIRS,
    1,
    DB__FN(amx_gemm),
#else
    DB__K2,
    DB__PAIRS,
    0,
    DB__FN(gemm),
#endif
    sizeof(DB__T),
    DB__FN(pack_weight),
    DB__FN(pack),
    DB__FN(transpose),
    DB__FN(epilogue),
#ifdef DB__PASS_BF16
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
#else
    DB__FN(winograd_weight),
    DB__FN(winograd_weight_back),
    DB__FN(winograd_input),
    DB__FN(winograd_output_back),
    DB__FN(winograd_output),
#endif
    DB__FN(column_sums),
    DB__FN(norm_sums),
    DB__FN(norm_apply),
    DB__FN(norm_back_sums),
    DB__FN(norm_back_apply),
    DB__FN(layer_norm),
    DB__FN(layer_norm_back),
    DB__FN(act),
    DB__FN(act_back),
    DB__FN(gate),
    DB__FN(gate_back),
    DB__FN(mul),
    DB__FN(axpby),
    DB__FN(from_f32),
    DB__FN(to_f32),
    DB__FN(pool),
    DB__FN(softmax),
    DB__FN(softmax_back),
    DB__FN(dot),
#ifdef DB__PASS_BF16
    NULL
#else
    DB__FN(adamw)
#endif
};

#undef DB__V
#undef DB__VN
#undef DB__MR
#undef DB__NP
#undef DB__vload
#undef DB__vstore
#undef DB__vset1
#undef DB__vadd
#undef DB__vsub
#undef DB__vmul
#undef DB__vdiv
#undef DB__vfma
#undef DB__vmax
#undef DB__vmin
#undef DB__vsqrt
#undef DB__vround
#undef DB__vabs
#undef DB__vselect_lt
#undef DB__vscale2
#undef DB__vguess_reciprocal
#undef DB__vload_bf16
#undef DB__vlow_bf16
#undef DB__vhigh_bf16
#undef DB__vturn
#undef DB__vzip_bf16
#undef DB__SET
#undef DB__TARGET
#undef DB__vstore_bf16
#undef DB__vdot2
#undef DB__PAIRS
#undef DB__AMX_TARGET
#undef DB__T
#undef DB__TYPE
#undef DB__LD
#undef DB__ST
#undef DB__TO_T
#undef DB__K2
#undef DB__FN
#undef DB__KERNEL
#undef DB__INLINE
#undef DB__PV
#undef DB__GELU_A
#undef DB__GELU_B
#undef DB__SWITCH_ACT
#undef DB__EACH
#undef DB__WALK

#endif
#endif /* DREAMBOOTH_IMPLEMENTATION */
