/* cells.h - computes one cell: trains as its settings say, draws, measures, fills a record.

   A cell depends on its settings, subject, seed and the networks alone, on nothing that ran before
   it: it begins with the shipped weights, and what cells share (class images, pictures of the
   original model) is a function of its key, kept in a file so that it is drawn once. Include after
   classifier.h, pictures.h, experiments.h and records.h.                                         */
#ifndef CELLS_H
#define CELLS_H

enum { MOST_PROMPTS = 64 };
static const double LEARNT = .05; /* of DINO's cosine: what rose by less has not been learnt */

/* Beginnings of the seeds of pictures; the cell's seed stands above them. */
enum { SEED_SUBJECT, SEED_CLASS, SEED_LEAK, SEED_APPLICATION, SEED_SR };

typedef struct networks {
    db_ctx *ctx;
    const char *base, *sr; /* directories; sr or NULL */
    classifier *classifier; /* each may be NULL: its values are then missing */
    db_vit *dino;
    db_clip *clip;
    db_lpips *lpips;
    char hash[20];
} networks;

typedef struct workplace { /* what all cells have in common */
    networks net;
    const scale *size;
    const char *folder; /* for records and pictures */
    double guidance;
    int lock;           /* of the folder's file of that name; 0: none */
} workplace;

/* Takes what the hexadecimal key names for this process, until release or its end: a lock on that
   byte of a file, which nobody reads. 0 if another has it, or, with wait, after a signal. */
static inline int set_lock(const workplace *w, const char *key, int type, int wait)
{
    struct flock f;
    memset(&f, 0, sizeof f);
    f.l_type = (short)type, f.l_whence = SEEK_SET, f.l_len = 1;
    f.l_start = (off_t)(strtoull(key, NULL, 16) & 0x3fffffff);
    return !w->lock || fcntl(w->lock, wait ? F_SETLKW : F_SETLK, &f) == 0;
}
static inline int hold(const workplace *w, const char *key, int wait)
{
    return set_lock(w, key, F_WRLCK, wait);
}
static inline void release(const workplace *w, const char *key) { set_lock(w, key, F_UNLCK, 0); }

/* Photo k of those that the settings train on. */
static inline void photo_scene(const settings *s, int subject, int k, world_scene *scene)
{
    static const int views[] = {WORLD_FRONT, WORLD_SIDE, WORLD_BACK, WORLD_ABOVE};
    int places[WORLD_PLACES], one_place = s->shots[0] == '1' || k == 0;
    size_t n = free_places(subject, places);
    if (!strcmp(s->shots, "usual")) world_subject_photo(subject, k, scene);
    else world_subject_view(subject,
                            one_place ? world_subject(subject).places[0] : places[n - (size_t)k],
                            s->shots[2] == '1' ? WORLD_FRONT : views[k % 4],
                            ~(uint64_t)(100 + k), scene);
}

static inline pictures take_photos(const settings *s, int subject, size_t side)
{
    pictures p = pictures_make((size_t)s->photos, side);
    size_t k;
    for (k = 0; k < p.n; k++) {
        world_scene scene;
        photo_scene(s, subject, (int)k, &scene);
        render(&scene, &p, k);
    }
    return p;
}

/* Where they were taken: a bit for each place. */
static inline unsigned places_of_photos(const settings *s, int subject)
{
    unsigned places = 0;
    int k;
    for (k = 0; k < (int)s->photos; k++) {
        world_scene scene;
        photo_scene(s, subject, k, &scene);
        places |= 1u << scene.place;
    }
    return places;
}

/* All photos of a subject: what pictures are compared with. */
static inline pictures all_photos(int subject, size_t side)
{
    settings s = settings_default();
    s.photos = world_subject(subject).n_photos;
    return take_photos(&s, subject, side);
}

/* The subject where neither a photo nor a prompt has it. */
static inline void held_out_scene(int subject, size_t k, world_scene *scene)
{
    static const int views[] = {WORLD_SIDE, WORLD_FRONT, WORLD_BACK, WORLD_ABOVE};
    int places[WORLD_PLACES];
    free_places(subject, places);
    world_subject_view(subject, places[HELD_OUT_PLACE + k % HELD_OUT_PLACES], views[k % 4],
                       7000 + k, scene);
}

static inline pictures render_held_out(int subject, size_t n, size_t side)
{
    pictures p = pictures_make(n, side);
    size_t k;
    for (k = 0; k < n; k++) {
        world_scene scene;
        held_out_scene(subject, k, &scene);
        render(&scene, &p, k);
    }
    return p;
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* Pixels along a side of what a pipeline draws. */
static inline size_t picture_side(const db_pipeline *p)
{
    return p->unet->config.sample_size * (p->vae ? db_vae_factor(p->vae) : 1);
}

static inline uint64_t picture_seed(int cell_seed, int purpose)
{
    return ((uint64_t)(cell_seed + 1) << 32) + ((uint64_t)purpose << 24);
}

/* The model before any fine-tuning. */
static inline int open_base(const workplace *w, db_pipeline **p)
{
    *p = NULL;
    if (db_pipeline_load(w->net.ctx, w->net.base, p) != DB_OK) return 1;
    if (w->size->side) (*p)->unet->config.sample_size = w->size->side;
    return 0;
}

/* The same as all pictures of subjects are drawn. */
static inline int draw_usual(const workplace *w, db_pipeline *p, const char *const *prompts,
                             size_t n, uint64_t seed, pictures *to, size_t first)
{
    return draw_into(p, p->vae ? p->scheduler.sampler : DB_SAMPLER_DPMSOLVER, w->size->draw_steps,
                     w->guidance, prompts, n, seed, to, first);
}

static inline pictures draw(const workplace *w, db_pipeline *p, const char *const *prompts,
                            size_t n, uint64_t seed)
{
    pictures to = pictures_make(n, picture_side(p));
    draw_usual(w, p, prompts, n, seed, &to, 0);
    return to;
}

static inline const char *precision_name(const db_ctx *ctx)
{
    return ctx->config.compute == DB_BF16 ? "bf16" : "f32";
}

/* The precision, behind it a GPU's name: what decides about bits beside settings and weights. */
static inline void computed_in(const db_ctx *ctx, char out[32])
{
    const db_backend *gpu = ctx->config.backend;
    snprintf(out, 32, "%s%s", precision_name(ctx), gpu ? gpu->name : "");
}

/* n pictures that only the original model and `what` decide, from the file of that name; those that
   it lacks are drawn by `more` and added. Another process that draws the same is waited for. */
static inline pictures kept(const workplace *w, const char *what, size_t n, size_t side,
                            int (*more)(const workplace *, const void *, pictures *, size_t),
                            const void *how)
{
    pictures p = pictures_make(n, side);
    size_t one = side * side * 3, have = 0;
    uint64_t key = hash_bytes(hash_begin, what, strlen(what));
    char path[4096], name[20], in[32];
    FILE *f;
    key = hash_bytes(key, w->net.hash, strlen(w->net.hash));
    computed_in(w->net.ctx, in);
    key = hash_bytes(key, in, strlen(in));
    snprintf(name, sizeof name, "%016llx", (unsigned long long)key);
    snprintf(path, sizeof path, "%s/pictures", w->folder);
    make_folder(path);
    snprintf(path, sizeof path, "%s/pictures/%s.rgb", w->folder, name);
    hold(w, name, 1);
    f = fopen(path, "rb");
    if (f) have = fread(p.rgb, one, n, f), fclose(f);
    if (have < n && !more(w, how, &p, have) && (f = begin_file(path)) != NULL) {
        fwrite(p.rgb, one, n, f);
        end_file(f, path);
    }
    release(w, name);
    return p;
}

typedef struct request { /* of the original model */
    const char *const *prompts;
    uint64_t seed;
    double guidance; /* of class images */
} request;

static inline int draw_original(const workplace *w, const void *how, pictures *to, size_t first)
{
    const request *r = (const request *)how;
    db_pipeline *p;
    int bad = open_base(w, &p) ||
        draw_usual(w, p, r->prompts + first, to->n - first, r->seed + first, to, first);
    db_pipeline_free(p);
    return bad;
}

/* What the model draws of n prompts before any fine-tuning. */
static inline pictures original_pictures(const workplace *w, const char *const *prompts, size_t n,
                                         size_t side, uint64_t seed)
{
    request r;
    char what[MOST_PROMPTS * 4 * 8];
    uint64_t key = hash_begin;
    size_t k;
    for (k = 0; k < n; k++) key = hash_bytes(key, prompts[k], strlen(prompts[k]) + 1);
    snprintf(what, sizeof what, "original %016llx seed %llu steps %zu guidance %g %g",
             (unsigned long long)key, (unsigned long long)seed, w->size->draw_steps, w->guidance,
             PIXEL_GUIDANCE_STOP);
    r.prompts = prompts, r.seed = seed, r.guidance = 0;
    return kept(w, what, n, side, draw_original, &r);
}

static inline int draw_class(const workplace *w, const void *how, pictures *to, size_t first)
{
    const request *r = (const request *)how;
    const char **same = (const char **)malloc((to->n + 1) * sizeof *same);
    db_pipeline *p;
    size_t k;
    int bad;
    for (k = 0; k < to->n; k++) same[k] = r->prompts[0];
    bad = open_base(w, &p) ||
        draw_into(p, DB_SAMPLER_DDPM, w->size->class_steps, r->guidance, same, to->n - first,
                  db_class_image_seed(r->prompts[0], first), to, first);
    db_pipeline_free(p);
    free((void *)same);
    return bad;
}

/* Class images of the frozen original model with its ancestral sampler; a larger pool contains the
   smaller. */
static inline pictures class_pool(const workplace *w, const char *class_prompt, double guidance,
                                  size_t n, size_t side)
{
    request r;
    char what[512];
    snprintf(what, sizeof what, "class \"%s\" steps %zu guidance %g", class_prompt,
             w->size->class_steps, guidance);
    r.prompts = &class_prompt, r.seed = 0, r.guidance = guidance;
    return kept(w, what, n, side, draw_class, &r);
}

/* A tape of the U-Net on B images [B,S,S,3], timesteps [B] and texts [B,T,D], the three of in; its
   output is kept in *y. NULL after an error. */
static inline db_tape *record_unet(db_pipeline *p, size_t B, size_t S, db_tensor in[3],
                                   db_tensor *y)
{
    db_tape *t = NULL;
    size_t dim[4];
    if (db_tape_create(p->ctx, &t) != DB_OK) return NULL;
    dim[0] = B, dim[1] = dim[2] = S, dim[3] = 3;
    in[0] = db_input(t, DB_F32, 4, dim), in[1] = db_input(t, DB_F32, 1, dim);
    dim[1] = DB_PROMPT_TOKENS, dim[2] = p->text_encoder->config.d_model;
    in[2] = db_input(t, DB_F32, 3, dim);
    *y = db_unet_forward(t, p->unet, in[0], in[1], in[2], db_none, NULL);
    db_keep(t, *y);
    return t;
}

/* SDEdit (Meng et al., 2021): picture k is noised `strength` of the way and drawn from there. */
static inline int edit_pictures(const workplace *w, db_pipeline *p, const char *const *prompts,
                                size_t n, const db_image *from, size_t n_from, double strength,
                                uint64_t seed, pictures *to)
{
    db_ctx *ctx = p->ctx;
    size_t T = DB_PROMPT_TOKENS, D = p->text_encoder->config.d_model, S = to->side, P = S * S, k, i,
           CP = p->unet->config.out_channels, first;
    float *text = (float *)malloc(2 * T * D * sizeof *text),
          *x = (float *)malloc(P * 3 * sizeof *x), *noise = (float *)malloc(P * 3 * sizeof *noise),
          *pred = (float *)malloc(2 * P * CP * sizeof *pred),
          *in = (float *)malloc(6 * P * sizeof *in);
    float time[2], alpha, sigma;
    double guidance;
    const char *pair[2] = {"", ""};
    db_tensor in_tape[3], y;
    db_tape *t = record_unet(p, 2, S, in_tape, &y);
    for (k = 0; k < n && db_status(ctx) == DB_OK; k++) {
        db_trajectory tr;
        db_rng rng;
        pair[1] = prompts[k];
        db_encode(p->text_encoder, p->tokenizer, pair, 2, T, text, NULL);
        db_resize(ctx, &from[k % n_from], S, S, x);
        rng.seed = seed + k, rng.purpose = DB__FOR_SAMPLE, rng.step = 0; /* as db_sample's */
        db_random_normal(&rng, P * 3, noise);
        db_trajectory_init(&p->scheduler, DB_SAMPLER_DDIM, edit_steps(w->size), P * 3, &tr);
        tr.use_clipped_model_output = 1;
        first = (size_t)((1 - strength) * (double)tr.n + 0.5);
        if (db_status(ctx) == DB_OK && first < tr.n) {
            db_schedule_coefficients(&p->scheduler, tr.timestep[first], &alpha, &sigma);
            for (i = 0; i < P * 3; i++) x[i] = alpha * x[i] + sigma * noise[i];
            db_upload(t, in_tape[2], text);
        }
        for (i = first; i < tr.n && db_status(ctx) == DB_OK; i++) {
            time[0] = time[1] = (float)tr.timestep[i];
            memcpy(in, x, P * 3 * sizeof *in), memcpy(in + P * 3, x, P * 3 * sizeof *in);
            db_upload(t, in_tape[0], in), db_upload(t, in_tape[1], time);
            db_run(t, seed, (uint32_t)i);
            if (db_download(t, y, pred) != DB_OK) break;
            guidance = (double)i < usual_guidance_stop(p) * (double)tr.n ? w->guidance : 1;
            db_guide(1, P, 3, CP, (float)guidance, pred);
            db_trajectory_step(&tr, i, 1, P, 3, CP, pred, noise, x);
        }
        db_trajectory_free(&tr);
        db_to_rgb(x, P * 3, picture_at(to, k));
        if (interrupted) db_fail(ctx, DB_ERROR_CANCELLED, "interrupted");
    }
    db_tape_destroy(t);
    free(text), free(x), free(noise), free(pred), free(in);
    return db_status(ctx) != DB_OK;
}

/* ---- prompts of a subject -------------------------------------------------------------------- */

typedef struct prompts {
    prompt item[MOST_PROMPTS];
    size_t n;
    char word[64], noun[160]; /* what stands for the subject: "a" word noun */
    const char *class_noun;
} prompts;

static inline prompt *add_prompt(prompts *all, const char *group, const char *before,
                                 const char *adjective, const char *after)
{
    prompt *p = &all->item[all->n++];
    memset(p, 0, sizeof *p);
    phrase(p->text, sizeof p->text, before, adjective, all->word, all->noun, after);
    phrase(p->words, sizeof p->words, before, adjective, "", all->class_noun, after);
    p->group = group;
    p->place = p->view = p->style = p->accessory = p->color = p->other = -1;
    return p;
}

/* The colour word nearest to a colour. */
static inline const char *nearest_color(const float rgb[3])
{
    double best = 1e9;
    int k, c, which = 0;
    for (k = 0; k < WORLD_COLORS; k++) {
        double d = 0;
        for (c = 0; c < 3; c++)
            d += pow((double)rgb[c] - (double)world__palette[k][c], 2);
        if (d < best) best = d, which = k;
    }
    return world_color_name(which);
}

/* What careful words can say: "white dog with brown stripes and the letter a". */
static inline void describe(int subject, char *out, size_t size)
{
    world_scene s;
    char glyph[32] = "";
    int with;
    world_subject_photo(subject, 0, &s);
    with = s.n_marks > 0;
    if (s.glyph >= 0)
        snprintf(glyph, sizeof glyph, "%s %s %c", with ? " and the" : " with the",
                 s.glyph < 26 ? "letter" : "number",
                 s.glyph < 26 ? 'a' + s.glyph : '0' + s.glyph - 26);
    snprintf(out, size, "%s %s%s%s%s%s", nearest_color(s.rgb[0]), world_class_name(s.object),
             with ? " with " : "", with ? nearest_color(s.marks[0].rgb) : "",
             with ? s.marks[0].kind == WORLD_MARK_BAND ? " stripes" : " spots" : "", glyph);
}

/* The name under which the settings have the subject in prompts. */
static inline prompts name_subject(const settings *s, int subject)
{
    prompts all;
    memset(&all, 0, sizeof all);
    all.class_noun = world_subject(subject).class_name;
    snprintf(all.noun, sizeof all.noun, "%s", settings_noun(s, subject));
    identifier_words(s, all.word, sizeof all.word);
    if (!strcmp(s->train, "embedding")) all.noun[0] = 0; /* the word stands for the noun, too */
    if (!strcmp(s->train, "sdedit")) all.word[0] = 0;
    if (!strcmp(s->train, "description"))
        all.word[0] = 0, describe(subject, all.noun, sizeof all.noun);
    return all;
}

/* Places that no photo shows, and the bare name last: often where it is asked where and how the
   photos have tied the subject. */
static inline prompts subject_prompts(const settings *s, int subject, size_t n)
{
    prompts all = name_subject(s, subject);
    int places[WORLD_PLACES];
    size_t k;
    free_places(subject, places);
    for (k = 0; k < n; k++)
        add_prompt(&all, "place", "", "", world_place_name(places[k]))->place = places[k];
    for (k = 0; k < (strcmp(s->shots, "usual") ? 4 : 1); k++) add_prompt(&all, "bare", "", "", "");
    return all;
}

static inline prompts application_prompts(const settings *s, int subject)
{
    static const int colors[] = {WORLD_RED, WORLD_GREEN, WORLD_BLUE, WORLD_PURPLE};
    static const int others[] = {WORLD_DUCK, WORLD_BEAR, WORLD_TEAPOT, WORLD_ROBOT};
    prompts all = name_subject(s, subject);
    int object = world_subject(subject).object, k;
    char text[256], after[256];
    for (k = 1; k < WORLD_STYLES; k++)
        add_prompt(&all, "art", world_style_name(k), "", "")->style = k;
    for (k = WORLD_SIDE; k < WORLD_VIEWS; k++) {
        snprintf(after, sizeof after, "seen from %s%s", k == WORLD_ABOVE ? "" : "the ",
                 world_view_name(k));
        add_prompt(&all, "views", "", "", after)->view = k;
    }
    for (k = 1; k < WORLD_ACCESSORIES; k++) {
        phrase(text, sizeof text, "wearing", "", "", world_accessory_name(k), "");
        if (k == WORLD_SUNGLASSES) snprintf(text, sizeof text, "wearing sunglasses");
        add_prompt(&all, "accessories", "", "", text)->accessory = k;
    }
    for (k = 0; k < 4; k++)
        add_prompt(&all, "colours", "", world_color_name(colors[k]), "")->color = colors[k];
    for (k = 0; k < 4; k++) { /* the head of the subject, the body of another */
        if (others[k] == object || !world_has_head(object)) continue;
        phrase(after, sizeof after, "and", "", "", world_class_name(others[k]), "");
        add_prompt(&all, "hybrids", "a cross of", "", after)->other = others[k];
    }
    for (k = 1; k < WORLD_EXPRESSIONS && world_is_animal(object); k++)
        add_prompt(&all, "expressions", "", world_expression_name(k), "")->other = k;
    return all;
}

/* 25 prompts: nine places that neither photos nor held-out renders show, three of them once more
   from the side, and the bare name; styles, views, accessories. */
static inline prompts protocol_prompts(const settings *s, int subject, size_t n)
{
    prompts all = subject_prompts(s, subject, n), more = application_prompts(s, subject);
    int places[WORLD_PLACES];
    size_t k;
    char text[128];
    free_places(subject, places);
    for (k = 0; k < n; k++) {
        int place = places[k < n / 2 ? HELD_OUT_PLACE + HELD_OUT_PLACES + k : k - n / 2];
        snprintf(text, sizeof text, "%s%s", k < n / 2 ? "" : "seen from the side ",
                 world_place_name(place));
        add_prompt(&all, "place", "", "", text)->place = place;
    }
    for (k = 0; k < more.n && strcmp(more.item[k].group, "colours"); k++)
        all.item[all.n++] = more.item[k];
    return all;
}

/* Each prompt `each` times: texts, or with `plain` those without identifier. */
static inline const char **repeat(const prompts *all, size_t each, int plain)
{
    const char **out = (const char **)calloc(all->n * each + 1, sizeof *out);
    size_t k;
    for (k = 0; k < all->n * each; k++)
        out[k] = plain ? all->item[k / each].words : all->item[k / each].text;
    return out;
}

/* ---- training -------------------------------------------------------------------------------- */

typedef struct work { /* on one cell */
    const workplace *w;
    const cell *c;
    db_pipeline *p;       /* starts as shipped, changes */
    db_dreambooth *d;     /* NULL: nothing is trained   */
    pictures photos, real, held_out;
    char instance[192], class_prompt[192];
    float *embeddings;    /* textual inversion: the table as it was */
    int32_t row;          /* and the row that learns                */
    record *out;
} work;

/* Leaves only parameters whose names hold one of `n` parts to be trained. */
static inline void train_only(db_param_table *table, const char *const *part, size_t n)
{
    size_t k, i;
    for (k = 0; k < table->n; k++) {
        table->item[k].frozen = 1;
        for (i = 0; i < n; i++)
            if (strstr(table->item[k].name, part[i])) table->item[k].frozen = 0;
    }
}

/* Textual inversion (Gal et al., 2022): of everything, the identifier's row of the embeddings alone
   learns. It starts as the class noun's. The other rows are put back after every step. */
static inline int start_inversion(work *w)
{
    db_text_encoder *e = w->p->text_encoder;
    const char *name = "shared.weight";
    db_param *table = db_params_find(&e->params, name);
    int32_t ids[16];
    size_t D = e->config.d_model, n, i, k;
    const char *noun = world_subject(w->c->subject).class_name;
    if (db_params_fill(&e->params) != DB_OK || !table)
        return fail("textual inversion needs a T5 encoder");
    if (db_tokenizer_split(w->p->tokenizer, w->c->settings.word, ids, 16) != 1)
        return fail("textual inversion needs an identifier of one token");
    w->row = ids[0];
    n = db_tokenizer_split(w->p->tokenizer, noun, ids, 16);
    for (i = 0; i < D; i++) {
        double sum = 0;
        for (k = 0; k < n; k++) sum += (double)table->data[(size_t)ids[k] * D + i];
        table->data[(size_t)w->row * D + i] = (float)(sum / (double)n);
    }
    w->embeddings = (float *)malloc(table->count * sizeof(float));
    memcpy(w->embeddings, table->data, table->count * sizeof(float));
    train_only(&w->p->unet->params, NULL, 0);
    train_only(&e->params, &name, 1);
    return 0;
}

static inline void restore_other_rows(work *w)
{
    db_text_encoder *e = w->p->text_encoder;
    db_param *table = db_params_find(&e->params, "shared.weight");
    size_t D = e->config.d_model;
    float *row = w->embeddings + (size_t)w->row * D;
    memcpy(row, table->data + (size_t)w->row * D, D * sizeof *row);
    memcpy(table->data, w->embeddings, table->count * sizeof *row);
}

/* What the settings say of any network's training. */
static inline db_dreambooth_config training_config(const work *w)
{
    const settings *s = &w->c->settings;
    db_dreambooth_config c = db_dreambooth_config_default();
    c.instance_prompt = w->instance, c.seed = (uint64_t)w->c->seed;
    c.train_batch_size = c.class_batch_size = (size_t)s->batch;
    c.learning_rate = (float)s->lr, c.max_train_steps = (size_t)s->steps;
    c.lr_scheduler = strcmp(s->schedule, "cosine") ? DB_LR_CONSTANT : DB_LR_COSINE;
    c.snr_gamma = (float)s->gamma;
    return c;
}

static inline int start_training(work *w)
{
    const settings *s = &w->c->settings;
    db_dreambooth_config c = training_config(w);
    /* attention blocks whole; in them the text's keys and values, pixel models', latent models' */
    static const char *const attention = ".attentions.",
                      *const of_text[] = {"add_k_proj", "add_v_proj", "attn2.to_k", "attn2.to_v"};
    size_t S = picture_side(w->p), n = (size_t)s->classes;
    pictures classes;
    float *class_images = NULL;
    int bad = 0;
    memset(&classes, 0, sizeof classes);
    if (s->steps == 0) return 0;
    c.resolution = S;
    c.prior_loss_weight = (float)s->lambda, c.train_text_encoder = s->text != 0;
    c.gradient_checkpointing = c.in_sequence = w->p->vae != NULL; /* a large model */
    c.lora_rank = !strcmp(s->train, "lora") ? (size_t)s->rank : 0;
    if (s->lambda > 0) {
        c.class_prompt = w->class_prompt;
        classes = class_pool(w->w, w->class_prompt, s->class_guidance, n, S);
        class_images = (float *)malloc(n * S * S * 3 * sizeof(float));
        to_floats(classes.rgb, n * S * S * 3, class_images);
    }
    if (!strcmp(s->train, "attention")) train_only(&w->p->unet->params, &attention, 1);
    if (!strcmp(s->train, "cross")) train_only(&w->p->unet->params, of_text, 4);
    if (!strcmp(s->train, "embedding")) {
        c.train_text_encoder = 1, c.optimizer.weight_decay = 0;
        bad = start_inversion(w);
    }
    bad = bad || db_dreambooth_create(w->p, w->p, &c, w->photos.view, w->photos.n, class_images, n,
                                      &w->d) != DB_OK;
    pictures_free(&classes);
    free(class_images);
    return bad;
}

/* Goes on until `steps` are done. */
static inline int train_until(work *w, size_t steps)
{
    db_dreambooth_losses l;
    memset(&l, 0, sizeof l);
    while (w->d && db_dreambooth_steps_done(w->d) < steps) {
        if (db_dreambooth_step(w->d, &l) != DB_OK) return 1;
        if (w->embeddings) restore_other_rows(w);
    }
    return 0;
}

/* ---- measures -------------------------------------------------------------------------------- */

static inline void set_value(work *w, const char *name, const char *suffix, double value)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    record_set(w->out, full, value);
}

/* DINO's embeddings [n,D] of pictures, to be freed; NULL without DINO. */
static inline float *dino_of(const networks *net, const db_image *images, size_t n)
{
    float *z =
        net->dino ? (float *)malloc((n * net->dino->config.hidden_size + 1) * sizeof *z) : NULL;
    if (z && db_vit_embed(net->dino, images, n, z) == DB_OK) return z;
    free(z);
    return NULL;
}

/* Mean DINO cosine between two sets. */
static inline double dino_between(const networks *net, const db_image *a, size_t n,
                                  const db_image *b, size_t m)
{
    float *x = dino_of(net, a, n), *y = dino_of(net, b, m);
    double c = x && y ? db_cosine_between(x, n, y, m, net->dino->config.hidden_size) : (double)NAN;
    free(x), free(y);
    return c;
}

/* The denoising loss of pictures under the instance prompt, at fixed times with fixed noise: low on
   the photos and high on other renders of the subject is overfitting. */
static inline double denoising_loss(work *w, const pictures *set)
{
    static const double levels[] = {.1, .25, .4, .55, .7, .85};
    db_pipeline *p = w->p;
    db_ctx *ctx = p->ctx;
    size_t S = p->unet->config.sample_size, P = S * S * 3, T = DB_PROMPT_TOKENS,
           D = p->text_encoder->config.d_model, CP = p->unet->config.out_channels, l = 0, k, i;
    float *text = (float *)malloc(T * D * sizeof *text), *x = (float *)malloc(P * sizeof *x),
          *z = (float *)malloc(P * sizeof *z), *eps = (float *)malloc(P * sizeof *eps),
          *pred = (float *)malloc(S * S * CP * sizeof *pred), alpha, sigma, time;
    const char *prompt_text = w->instance;
    double sum = 0;
    db_tensor in[3], y;
    db_tape *t = record_unet(p, 1, S, in, &y);
    if (t) {
        db_encode(p->text_encoder, p->tokenizer, &prompt_text, 1, T, text, NULL);
        db_upload(t, in[2], text);
    }
    for (k = 0; k < set->n && db_status(ctx) == DB_OK; k++) {
        db_resize(ctx, &set->view[k], S, S, x);
        for (l = 0; l < sizeof levels / sizeof *levels; l++) {
            size_t step = (size_t)(levels[l] * (double)p->scheduler.num_train_timesteps);
            db_rng rng;
            rng.seed = 1, rng.purpose = (uint32_t)l, rng.step = (uint32_t)k;
            db_random_normal(&rng, P, eps);
            db_schedule_coefficients(&p->scheduler, step, &alpha, &sigma);
            for (i = 0; i < P; i++) z[i] = alpha * x[i] + sigma * eps[i];
            time = (float)step;
            db_upload(t, in[0], z), db_upload(t, in[1], &time);
            db_run(t, 1, 0);
            if (db_download(t, y, pred) != DB_OK) break;
            for (i = 0; i < P; i++) {
                double target = p->scheduler.prediction_type == DB_PREDICT_EPSILON ? (double)eps[i]
                    : p->scheduler.prediction_type == DB_PREDICT_SAMPLE
                    ? (double)x[i]
                    : (double)(alpha * eps[i] - sigma * x[i]);
                sum += pow((double)pred[i / 3 * CP + i % 3] - target, 2);
            }
        }
    }
    db_tape_destroy(t);
    free(text), free(x), free(z), free(eps), free(pred);
    return sum / (double)(set->n * l * P);
}

/* Likeness to held-out renders on a scale from 0, what the original model draws from the same noise
   with the class noun alone, to 1, the held-out renders among themselves: places count on both
   sides, and photos trained on do not. */
static inline void measure_fidelity(work *w, const pictures *made, const pictures *before,
                                    const char *suffix)
{
    const networks *net = &w->w->net;
    const pictures *held = &w->held_out;
    size_t D = net->dino ? net->dino->config.hidden_size : 0;
    float *z = dino_of(net, held->view, held->n), *a = dino_of(net, made->view, made->n),
          *b = dino_of(net, before->view, before->n);
    if (z && a && b) {
        double floor = db_cosine_between(b, before->n, z, held->n, D),
               real = db_cosine_within(z, held->n, D);
        set_value(w, "held_out_floor", suffix, floor);
        set_value(w, "held_out_real", suffix, real);
        set_value(w, "fidelity", suffix,
                  db_normalized_fidelity(db_cosine_between(a, made->n, z, held->n, D), real,
                                         floor));
    }
    free(z), free(a), free(b);
}

static inline void set_share(work *w, const char *name, const char *of, const char *suffix,
                             size_t right, size_t n)
{
    char whole[40];
    snprintf(whole, sizeof whole, "%s%s", name, of);
    set_value(w, whole, suffix, (double)right / (double)n);
}

/* Shares of what the classifier finds as it was asked for; not a number where nothing was asked.
   `of` stands behind the values' names: "", or "_original" for the original model's pictures. */
static inline void measure_obedience(work *w, const prompts *all, size_t each, const pictures *made,
                                     const char *of, const char *suffix)
{
    const settings *s = &w->c->settings;
    world_subject_info info = world_subject(w->c->subject);
    unsigned places = places_of_photos(s, w->c->subject);
    const char *noun_word = settings_noun(s, w->c->subject);
    int noun = world__find(world__class_names, WORLD_CLASSES, noun_word, strlen(noun_word)),
        color = world__find(world__color_names, WORLD_COLORS, s->word, strlen(s->word));
    size_t n = made->n, k, asked = 0, right = 0, of_photos = 0, class_right = 0, of_noun = 0,
           of_color = 0, bare = 0, bare_first = 0, bare_front = 0;
    int32_t *seen = (int32_t *)malloc((n + 1) * CLASSIFIER_N * sizeof *seen);
    if (w->w->net.classifier &&
        classifier_run(w->w->net.classifier, made->view, n, seen) == DB_OK) {
        for (k = 0; k < n; k++) {
            const int32_t *one = seen + k * CLASSIFIER_N;
            const prompt *p = &all->item[k / each];
            class_right += one[CLASSIFIER_class] == info.object;
            of_noun += one[CLASSIFIER_class] == noun, of_color += one[CLASSIFIER_color] == color;
            if (!strcmp(p->group, "bare")) {
                bare++, bare_first += one[CLASSIFIER_place] == info.places[0];
                bare_front += one[CLASSIFIER_view] == WORLD_FRONT;
            }
            if (p->place < 0) continue;
            asked++, right += one[CLASSIFIER_place] == p->place;
            of_photos += places >> one[CLASSIFIER_place] & 1;
        }
        set_share(w, "class_right", of, suffix, class_right, n);
        set_share(w, "place_right", of, suffix, right, asked);
        set_share(w, "place_of_photos", of, suffix, of_photos, asked);
        if (!strcmp(s->noun, "wrong")) set_share(w, "noun_right", of, suffix, of_noun, n);
        if (color >= 0) set_share(w, "color_of_word", of, suffix, of_color, n);
        if (strcmp(s->shots, "usual")) { /* all of these have a photo there and from the front */
            set_share(w, "bare_in_first_place", of, suffix, bare_first, bare);
            set_share(w, "bare_from_front", of, suffix, bare_front, bare);
        }
    }
    free(seen);
}

/* DIV taken apart, as a place that is not always drawn makes pictures differ: LPIPS of the pairs of
   one prompt that both show its place, and of the pictures by the bare name. */
static inline void measure_diversity(work *w, const prompts *all, size_t each, const pictures *made)
{
    enum { MOST = 16 };
    const networks *net = &w->w->net;
    double sum[2] = {0, 0};
    float lpips[MOST * (MOST - 1) / 2];
    size_t n[2] = {0, 0}, g, i, j, k;
    int32_t *seen = (int32_t *)malloc((made->n + 1) * CLASSIFIER_N * sizeof *seen);
    int bad = !net->lpips || !net->classifier || each > MOST ||
        classifier_run(net->classifier, made->view, made->n, seen) != DB_OK;
    for (g = 0; g < all->n && !bad; g++) {
        int place = all->item[g].place, bare = place < 0;
        const int32_t *of = seen + g * each * CLASSIFIER_N + CLASSIFIER_place;
        bad = db_lpips_distances(net->lpips, made->view + g * each, each, lpips) != DB_OK;
        for (i = k = 0; i < each && !bad; i++)
            for (j = i + 1; j < each; j++, k++)
                if (bare || (of[i * CLASSIFIER_N] == place && of[j * CLASSIFIER_N] == place))
                    sum[bare] += (double)lpips[k], n[bare]++;
    }
    if (!bad) {
        set_value(w, "div_placed", "", n[0] ? sum[0] / (double)n[0] : (double)NAN);
        set_value(w, "div_bare", "", n[1] ? sum[1] / (double)n[1] : (double)NAN);
    }
    free(seen);
}

/* The share of pictures that are nearer to this subject's photos than to those of the other 29
   (mean DINO cosine), after training and before. */
static inline void measure_nearest(work *w, const pictures *made, const pictures *before)
{
    enum { OTHERS = sizeof thirty / sizeof *thirty };
    static const char *const names[] = {"nearest_right", "nearest_right_original"};
    const pictures *const sets[] = {made, before};
    const networks *net = &w->w->net;
    size_t D = net->dino ? net->dino->config.hidden_size : 0, n[OTHERS], i, j, k;
    float *of[OTHERS];
    for (j = 0; j < OTHERS; j++) {
        pictures p = all_photos(world_subject_named(thirty[j]), w->w->size->photo_side);
        of[j] = dino_of(net, p.view, n[j] = p.n);
        pictures_free(&p);
    }
    for (i = 0; i < 2; i++) {
        float *z = dino_of(net, sets[i]->view, sets[i]->n);
        size_t right = 0;
        for (k = 0; k < sets[i]->n && z && db_status(net->ctx) == DB_OK; k++) {
            double best = -2;
            size_t nearest = 0;
            for (j = 0; j < OTHERS; j++) {
                double c = db_cosine_between(z + k * D, 1, of[j], n[j], D);
                if (c > best) best = c, nearest = j;
            }
            right += world_subject_named(thirty[nearest]) == w->c->subject;
        }
        if (z) set_value(w, names[i], "", (double)right / (double)sets[i]->n);
        free(z);
    }
    for (j = 0; j < OTHERS; j++) free(of[j]);
}

/* Where the pictures of a cell lie. */
static inline void strip_path(const char *folder, const char *cell_name, char *out, size_t size)
{
    char *at;
    snprintf(out, size, "%s/cells/%s.png", folder, cell_name);
    at = out + MIN(strlen(out), strlen(folder) + strlen("/cells/"));
    for (; *at; at++) *at = *at == '/' ? ',' : *at;
}

/* One picture beside the other, as CELL.png with the labels in the record. */
static inline int save_strip(work *w, const pictures *const *set, const size_t *index,
                             const char *const *labels, size_t n)
{
    size_t side = set[0]->side, k, y;
    uint8_t *rgb = (uint8_t *)malloc(n * side * side * 3);
    char path[4096], err[IMG_ERROR_SIZE];
    int bad;
    w->out->labels[0] = 0;
    for (k = 0; k < n; k++) {
        size_t used = strlen(w->out->labels);
        for (y = 0; y < side; y++)
            memcpy(rgb + (y * n + k) * side * 3, picture_at(set[k], index[k]) + y * side * 3,
                   side * 3);
        snprintf(w->out->labels + used, sizeof w->out->labels - used, "%s%s", k ? "|" : "",
                 labels[k]);
    }
    strip_path(w->w->folder, w->c->name, path, sizeof path);
    bad = img_save_png(path, rgb, n * side, side, err, sizeof err) != IMG_OK;
    free(rgb);
    return bad ? fail("%s", err) : 0;
}

/* The scores of DB_SCORES, the classifier's shares, the losses; with `strip`, a row of pictures. */
static inline int measure_standard(work *w, const char *suffix, int strip)
{
    const workplace *wp = w->w;
    const settings *s = &w->c->settings;
    db_ctx *ctx = wp->net.ctx;
    size_t each = wp->size->each, side = picture_side(w->p), n, k,
           n_class = class_pictures_of(w->c->measures, wp->size),
           n_compared = MIN(n_class, wp->size->class_pictures);
    int trained = s->steps > 0, protocol = w->c->measures & MEASURE_PROTOCOL, bad = 0;
    prompts all = protocol ? protocol_prompts(s, w->c->subject, wp->size->places)
                           : subject_prompts(s, w->c->subject, wp->size->places);
    const char **texts = repeat(&all, each, 0), **words = repeat(&all, each, 1);
    const char **classes = (const char **)malloc((n_class + 1) * sizeof *classes);
    char plain[192];
    pictures made, tuned, original, before;
    db_evaluation e;
    db_scores scores;
    double dino_original;
    phrase(plain, sizeof plain, "", "", "", all.class_noun, "");
    for (k = 0; k < n_class; k++) classes[k] = plain;
    n = all.n * each;
    memset(&e, 0, sizeof e);
    if (!strcmp(s->train, "sdedit")) {
        made = pictures_make(n, side);
        edit_pictures(wp, w->p, texts, n, w->photos.view, w->photos.n, s->strength,
                      picture_seed(w->c->seed, SEED_SUBJECT), &made);
    } else {
        made = draw(wp, w->p, texts, n, picture_seed(w->c->seed, SEED_SUBJECT));
    }
    original = original_pictures(wp, classes, n_class, side, picture_seed(w->c->seed, SEED_CLASS));
    before = original_pictures(wp, words, n, side, picture_seed(w->c->seed, SEED_SUBJECT));
    tuned = draw(wp, w->p, classes, trained ? n_class : 0, picture_seed(w->c->seed, SEED_CLASS));
    e.dino = wp->net.dino, e.clip = wp->net.clip, e.lpips = wp->net.lpips;
    e.generated = made.view, e.n_generated = n, e.prompts = words;
    e.real = w->real.view, e.n_real = w->real.n;
    e.held_out = w->held_out.view, e.n_held_out = w->held_out.n;
    e.class_images = tuned.view, e.n_class = trained ? n_compared : 0;
    e.original_class = original.view, e.n_original = n_compared;
    if (db_evaluate(ctx, &e, &scores) == DB_OK) {
        dino_original = dino_between(&wp->net, before.view, before.n, w->real.view, w->real.n);
        /* a subject hardly learnt says nothing of where the class has gone on the way to it */
        if (scores.dino - fmax(scores.pres_original, dino_original) < LEARNT)
            scores.drift = (double)NAN;
#define CELL_SCORE(field, name, what)                                                              \
    if (scores.field == scores.field) set_value(w, #field, suffix, scores.field);
        DB_SCORES(CELL_SCORE)
#undef CELL_SCORE
        measure_fidelity(w, &made, &before, suffix);
        measure_obedience(w, &all, each, &made, "", suffix);
        measure_obedience(w, &all, each, &before, "_original", suffix);
        if (protocol) measure_nearest(w, &made, &before);
        set_value(w, "dino_original", suffix, dino_original);
        if (w->c->measures & MEASURE_DIVERSITY) measure_diversity(w, &all, each, &made);
        if (w->c->measures & MEASURE_APPLICATIONS) { /* the pictures that place_right is of */
            const networks *net = &wp->net;
            size_t placed = wp->size->places * each;
            set_value(w, "likeness_recontextualisation", suffix,
                      dino_between(net, made.view, placed, w->real.view, w->real.n));
            set_value(w, "likeness_original_recontextualisation", suffix,
                      dino_between(net, before.view, placed, w->real.view, w->real.n));
        }
        if (w->c->measures & MEASURE_MORE_CLASS) {
            set_value(w, "class_diversity_64", suffix,
                      mean_lpips(wp->net.lpips, tuned.view, n_class));
            set_value(w, "class_diversity_64_original", suffix,
                      mean_lpips(wp->net.lpips, original.view, n_class));
        }
        if (trained && !w->p->vae) {
            double seen = denoising_loss(w, &w->photos), unseen = denoising_loss(w, &w->held_out);
            set_value(w, "loss_photos", suffix, seen), set_value(w, "loss_unseen", suffix, unseen);
            set_value(w, "overfit", suffix, unseen - seen);
        }
    }
    if (strip && db_status(ctx) == DB_OK) {
        const pictures *set[MOST_PROMPTS];
        size_t index[MOST_PROMPTS];
        const char *labels[MOST_PROMPTS];
        for (k = 0; k < all.n; k++)
            set[k] = &made, index[k] = k * each, labels[k] = all.item[k].text;
        set[k] = trained ? &tuned : &original, index[k] = 0, labels[k] = plain;
        bad = save_strip(w, set, index, labels, k + (n_class > 0));
    }
    pictures_free(&made), pictures_free(&tuned), pictures_free(&original), pictures_free(&before);
    free((void *)texts), free((void *)words), free((void *)classes);
    return bad || db_status(ctx) != DB_OK;
}

/* Where else the subject appears: likeness to the photos of pictures of six prompts, before and
   after; and, of the way that the subject's own prompt has come, the share that each other has. */
static inline int measure_leaks(work *w)
{
    static const char *const names[] = {"subject", "class", "word", "word_other", "other", "empty"};
    const networks *net = &w->w->net;
    world_subject_info info = world_subject(w->c->subject);
    prompts all = name_subject(&w->c->settings, w->c->subject);
    const char *thing = world_class_name(info.object == WORLD_CAR ? WORLD_MUG : WORLD_CAR),
               *animal = world_class_name(info.object == WORLD_CAT ? WORLD_DOG : WORLD_CAT);
    const struct { const char *word, *noun; } parts[] = {
        {all.word, info.class_name}, {"", info.class_name}, {all.word, ""},
        {all.word, thing},           {"", animal},          {"", ""}};
    size_t n = w->w->size->leak, k, j, side = picture_side(w->p);
    double likeness[2], whole = 0; /* before, after; what the subject's prompt has gained */
    for (k = 0; k < 6 && db_status(net->ctx) == DB_OK; k++) {
        const char *same[64];
        char text[192], name[64];
        uint64_t seed = picture_seed(w->c->seed, SEED_LEAK);
        pictures before, after;
        phrase(text, sizeof text, "", "", parts[k].word, parts[k].noun, "");
        for (j = 0; j < n; j++) same[j] = text;
        before = original_pictures(w->w, same, n, side, seed);
        after = draw(w->w, w->p, same, n, seed);
        likeness[0] = dino_between(net, before.view, n, w->real.view, w->real.n);
        likeness[1] = dino_between(net, after.view, n, w->real.view, w->real.n);
        if (!k) whole = likeness[1] - likeness[0];
        snprintf(name, sizeof name, "leak_before_%s", names[k]);
        set_value(w, name, "", likeness[0]);
        snprintf(name, sizeof name, "leak_%s", names[k]);
        set_value(w, name, "", likeness[1]);
        snprintf(name, sizeof name, "leak_share_%s", names[k]);
        if (k && whole >= LEARNT) set_value(w, name, "", (likeness[1] - likeness[0]) / whole);
        pictures_free(&before), pictures_free(&after);
    }
    return db_status(net->ctx) != DB_OK;
}

/* Which of m texts CLIP finds nearest to each of n pictures. */
static inline int clip_choice(db_clip *clip, const db_image *images, size_t n,
                              const char *const *texts, size_t m, size_t *out)
{
    size_t D = clip->config.projection_dim, k, j;
    float *a = (float *)malloc((n + m) * D * sizeof *a), *b = a + n * D;
    int bad = db_clip_embed_images(clip, images, n, a) != DB_OK ||
        db_clip_embed_texts(clip, texts, m, b) != DB_OK;
    for (k = 0; k < n && !bad; k++) {
        double best = -2;
        for (j = 0; j < m; j++) {
            double c = db_cosine_paired(a + k * D, b + j * D, 1, D);
            if (c > best) best = c, out[k] = j;
        }
    }
    free(a);
    return bad;
}

/* Hybrids and expressions: the classifier has no answer to them. */
static inline int asks_clip(const prompt *p)
{
    return p->style < 0 && p->view < 0 && p->accessory < 0 && p->color < 0;
}

/* Whether picture k shows what prompt p asks: by the classifier, or, where it has no such answer,
   by CLIP's choice among the captions that could be meant. */
static inline int shows(work *w, const prompt *p, const int32_t *seen, const db_image *picture)
{
    const networks *net = &w->w->net;
    const char *noun = world_subject(w->c->subject).class_name;
    char text[WORLD_EXPRESSIONS][192];
    const char *texts[WORLD_EXPRESSIONS];
    size_t choice = 0, m, k;
    if (p->style >= 0) return seen[CLASSIFIER_style] == p->style;
    if (p->view >= 0) return seen[CLASSIFIER_view] == p->view;
    if (p->accessory >= 0) return seen[CLASSIFIER_accessory] == p->accessory;
    if (p->color >= 0) return seen[CLASSIFIER_color] == p->color;
    m = !strcmp(p->group, "hybrids") ? 3 : WORLD_EXPRESSIONS;
    for (k = 0; k < m; k++) {
        if (m == WORLD_EXPRESSIONS)
            phrase(text[k], sizeof text[k], "", world_expression_name((int)k), "", noun, "");
        else if (k < 2)
            phrase(text[k], sizeof text[k], "", "", "", k ? world_class_name(p->other) : noun, "");
        else snprintf(text[k], sizeof text[k], "%s", p->words);
        texts[k] = text[k];
    }
    if (clip_choice(net->clip, picture, 1, texts, m, &choice)) return 0;
    return choice == (m == WORLD_EXPRESSIONS ? (size_t)p->other : 2);
}

/* Success rate and likeness of each application, and their means; the original model with the class
   noun alone is the control. */
static inline int measure_applications(work *w)
{
    static const char *const recontextualisation[][2] = { /* measured already */
        {"success_recontextualisation", "place_right"},
        {"success_original_recontextualisation", "place_right_original"}};
    static const char *const of[] = {"", "original_"};
    const networks *net = &w->w->net;
    size_t each = w->w->size->shown, side = picture_side(w->p), n, k, first, last;
    prompts all = application_prompts(&w->c->settings, w->c->subject);
    const char **texts = repeat(&all, each, 0), **words = repeat(&all, each, 1);
    uint64_t seed = picture_seed(w->c->seed, SEED_APPLICATION);
    pictures made[2];
    int32_t *seen = (int32_t *)calloc(all.n * each + 1, CLASSIFIER_N * sizeof *seen);
    const pictures *set[MOST_PROMPTS];
    size_t index[MOST_PROMPTS];
    const char *labels[MOST_PROMPTS];
    int which, bad = 0;
    n = all.n * each;
    made[0] = draw(w->w, w->p, texts, n, seed);
    made[1] = original_pictures(w->w, words, n, side, seed);
    for (which = 0; which < 2; which++) {
        double success = 0, likeness = 0;
        size_t groups = 0;
        if (net->classifier) classifier_run(net->classifier, made[which].view, n, seen);
        for (first = 0; first < all.n && db_status(net->ctx) == DB_OK; first = last) {
            const char *group = all.item[first].group;
            char name[64];
            double share, near;
            size_t right = 0;
            int answered = (asks_clip(&all.item[first]) ? net->clip != NULL
                                                        : net->classifier != NULL);
            for (last = first; last < all.n && !strcmp(all.item[last].group, group);) last++;
            for (k = first * each; k < last * each && answered; k++)
                right += (size_t)shows(w, &all.item[k / each], seen + k * CLASSIFIER_N,
                                       &made[which].view[k]);
            share = answered ? (double)right / (double)((last - first) * each) : (double)NAN;
            near = dino_between(net, made[which].view + first * each, (last - first) * each,
                                w->real.view, w->real.n);
            snprintf(name, sizeof name, "success_%s%s", of[which], group);
            set_value(w, name, "", share);
            snprintf(name, sizeof name, "likeness_%s%s", of[which], group);
            set_value(w, name, "", near);
            success += share, likeness += near, groups++;
        }
        set_value(w, which ? "success_original_mean" : "success_mean", "",
                  success / (double)groups);
        set_value(w, which ? "likeness_original_mean" : "likeness_mean", "",
                  likeness / (double)groups);
    }
    for (k = 0; k < all.n; k++) set[k] = &made[0], index[k] = k * each, labels[k] = texts[k * each];
    if (db_status(net->ctx) == DB_OK) bad = save_strip(w, set, index, labels, all.n);
    for (k = 0; k < sizeof recontextualisation / sizeof *recontextualisation; k++)
        set_value(w, recontextualisation[k][0], "",
                  record_get(w->out, recontextualisation[k][1]));
    pictures_free(&made[0]), pictures_free(&made[1]);
    free((void *)texts), free((void *)words), free(seen);
    return bad || db_status(net->ctx) != DB_OK;
}

/* ---- super-resolution ------------------------------------------------------------------------ */

enum {
    CLOSE = 96, /* side of what is shown close up, from the middle */
    SR_CROP = 64
};

/* What the small picture cannot hold: each pixel minus the mean of its block. */
static inline void detail_of(const float *x, size_t S, size_t f, float *out)
{
    size_t small = S / f, k;
    float *low = (float *)malloc(small * small * 3 * sizeof *low);
    db_downsample(x, S, S, 3, f, low);
    for (k = 0; k < S * S * 3; k++) {
        size_t y = k / (S * 3), column = k / 3 % S;
        out[k] = x[k] - low[(y / f * small + column / f) * 3 + k % 3];
    }
    free(low);
}

typedef struct restoration {
    db_pipeline *sr;
    size_t side, small, n; /* of the pictures; how many there are */
    float *low, *out;      /* small pictures [n,small,small,3], enlarged ones [n,side,side,3] */
    const char **texts;
    pictures truth, made;  /* held-out renders; the same restored */
    db_sample_config sample;
} restoration;

/* The super-resolver after training on the photos, and held-out renders made small; there is room
   for two pictures at least. */
static inline int start_restoration(work *w, restoration *r)
{
    const workplace *wp = w->w;
    const settings *s = &w->c->settings;
    db_ctx *ctx = wp->net.ctx;
    db_dreambooth_config c = training_config(w);
    db_dreambooth *d = NULL;
    size_t S = wp->size->photo_side, small = picture_side(w->p), room, k;
    float *x = (float *)malloc(S * S * 3 * sizeof *x);
    r->side = S, r->small = small, r->n = wp->size->held_out, room = MAX(r->n, (size_t)2);
    r->low = (float *)malloc(room * small * small * 3 * sizeof *r->low);
    r->out = (float *)malloc(room * S * S * 3 * sizeof *r->out);
    r->texts = (const char **)malloc(room * sizeof *r->texts);
    r->truth = render_held_out(w->c->subject, r->n, S), r->made = pictures_make(r->n, S);
    for (k = 0; k < room; k++) r->texts[k] = w->instance;
    for (k = 0; k < r->n; k++) {
        to_floats(picture_at(&r->truth, k), S * S * 3, x);
        db_downsample(x, S, S, 3, S / small, r->low + k * small * small * 3);
    }
    free(x);
    r->sample = db_sample_config_default();
    r->sample.sampler = DB_SAMPLER_DPMSOLVER, r->sample.guidance_scale = 1;
    r->sample.num_inference_steps = MIN(wp->size->draw_steps, (size_t)10);
    r->sample.seed = picture_seed(w->c->seed, SEED_SR);
    if (db_pipeline_load(ctx, wp->net.sr, &r->sr) != DB_OK) return 1;
    if (s->steps == 0) return 0; /* as shipped */
    c.resolution = S, c.crop_size = SR_CROP, c.upscale = S / small;
    c.lr_warmup_steps = c.max_train_steps / 20;
    c.noise_level = db_noise_level(&r->sr->image_noising, s->noise);
    db_dreambooth_create(r->sr, w->p, &c, w->photos.view, w->photos.n, NULL, 0, &d);
    while (d && db_dreambooth_steps_done(d) < c.max_train_steps)
        if (db_dreambooth_step(d, NULL) != DB_OK) break;
    db_dreambooth_free(d);
    return db_status(ctx) != DB_OK;
}

static inline int enlarge(work *w, restoration *r, size_t n, double variance)
{
    return db_upscale(r->sr, w->p, r->texts, n, NULL, &r->sample,
                      db_noise_level(&r->sr->image_noising, variance), r->low, r->small, r->small,
                      r->side, r->side, r->out) != DB_OK;
}

/* Restores the held-out renders with so much noise on the small pictures. Values: LPIPS; PSNR; of
   the detail on the object its correlation with the true one and the share of that one which is
   there (the regression's slope: grain adds nothing to it). */
static inline int measure_restored(work *w, restoration *r, double variance, const char *name)
{
    const networks *net = &w->w->net;
    size_t S = r->side, P = S * S * 3, k, i;
    float *x = (float *)malloc(P * sizeof *x), *true_detail = (float *)malloc(P * sizeof *x),
          *detail = (float *)malloc(P * sizeof *x);
    uint8_t *mask = (uint8_t *)malloc(S * S * 4);
    pictures spare = pictures_make(1, S);
    double distance = 0, squares = 0, ab = 0, aa = 0, bb = 0;
    int bad = enlarge(w, r, r->n, variance);
    for (k = 0; k < r->n && !bad; k++) {
        const float *y = r->out + k * P;
        world_scene scene;
        db_image pair[2];
        float one = (float)NAN;
        db_to_rgb(y, P, picture_at(&r->made, k));
        pair[0] = r->truth.view[k], pair[1] = r->made.view[k];
        if (net->lpips) bad = db_lpips_distances(net->lpips, pair, 2, &one) != DB_OK;
        distance += (double)one / (double)r->n;
        held_out_scene(w->c->subject, k, &scene); /* again, for where the object is */
        world_render(&scene, (int)S, 0, 0, (int)S, (int)S, 1, spare.rgb, mask);
        to_floats(picture_at(&r->truth, k), P, x);
        detail_of(x, S, S / r->small, true_detail), detail_of(y, S, S / r->small, detail);
        for (i = 0; i < P; i++) {
            double a = (double)true_detail[i], b = (double)detail[i];
            squares += pow((double)x[i] - (double)y[i], 2) / (double)(r->n * P);
            if (mask[i / 3 * 4] >= 128) ab += a * b, aa += a * a, bb += b * b;
        }
    }
    set_value(w, "lpips_", name, distance), set_value(w, "psnr_", name, 10 * log10(4 / squares));
    set_value(w, "detail_", name, ab / sqrt(aa * bb)), set_value(w, "kept_", name, ab / aa);
    pictures_free(&spare);
    free(x), free(true_detail), free(detail), free(mask);
    return bad;
}

/* The middle of picture k, close up, into place `to`. */
static inline void show_middle(const pictures *from, size_t k, const pictures *close, size_t to)
{
    size_t n = close->side, at = (from->side - n) / 2, y;
    for (y = 0; y < n; y++)
        memcpy(picture_at(close, to) + y * n * 3,
               picture_at(from, k) + ((at + y) * from->side + at) * 3, n * 3);
}

/* A strip of close-ups: two held-out renders beside what became of them, and two of the base's own
   pictures of the subject, enlarged, where the experiment "prior" has left some. */
static inline int show_close_ups(work *w, restoration *r)
{
    const settings *s = &w->c->settings;
    pictures close = pictures_make(6, MIN(r->side, (size_t)CLOSE)),
             large = pictures_make(2, r->side);
    const pictures *set[6];
    size_t index[6], shown = 0, small = r->small, k, y;
    const char *labels[6];
    char path[4096], err[IMG_ERROR_SIZE];
    img_image strip;
    int bad = 0;
    for (k = 0; k < 2 && k < r->n; k++) {
        show_middle(&r->truth, k, &close, shown), labels[shown++] = "held-out render";
        show_middle(&r->made, k, &close, shown), labels[shown++] = "made small and restored";
    }
    snprintf(path, sizeof path, "%s/cells/prior,with,%s,%d.png", w->w->folder,
             world_subject(w->c->subject).name, w->c->seed);
    if (file_exists(path) && img_load(path, &strip, err, sizeof err) == IMG_OK) {
        for (y = 0; y < 2 * small && strip.h == small && strip.w >= 2 * small; y++)
            to_floats(strip.rgb + (y % small * strip.w + y / small * small) * 3, small * 3,
                      r->low + y * small * 3);
        img_free(&strip);
        bad = enlarge(w, r, 2, s->noise < 0 ? 1e-3 : s->noise);
        if (!bad) db_to_rgb(r->out, 2 * r->side * r->side * 3, large.rgb);
        for (k = 0; k < 2; k++)
            show_middle(&large, k, &close, shown), labels[shown++] = "generated, enlarged";
    }
    for (k = 0; k < shown; k++) set[k] = &close, index[k] = k;
    bad = bad || save_strip(w, set, index, labels, shown);
    pictures_free(&close), pictures_free(&large);
    return bad;
}

static inline int measure_sr(work *w)
{
    static const struct { double variance; const char *name; } levels[] = {
        {.25, ".25"}, {1e-3, "1e-3"}, {1e-5, "1e-5"}};
    restoration r;
    size_t k;
    int bad;
    if (!w->w->net.sr) return fail("the experiment needs a super-resolver: a folder sr256");
    memset(&r, 0, sizeof r);
    bad = start_restoration(w, &r);
    for (k = 0; k < 3 && !bad; k++) {
        char name[16];
        bad = measure_restored(w, &r, levels[k].variance, levels[k].name);
        snprintf(name, sizeof name, "lpips_%s", levels[k].name);
        if (w->c->settings.noise == levels[k].variance)
            set_value(w, "lpips_as_trained", "", record_get(w->out, name));
    }
    bad = bad || show_close_ups(w, &r);
    db_pipeline_free(r.sr);
    pictures_free(&r.truth), pictures_free(&r.made);
    free(r.low), free(r.out), free((void *)r.texts);
    return bad;
}

/* ---- do the metrics measure subjects? -------------------------------------------------------- */

enum { SHAPES = 8, SHADES = 9 }; /* numbers of a member's build, of its colours */

/* Number i of the two together. */
static inline float *true_number(world_scene *s, size_t i)
{
    return i < SHAPES ? &s->shape[i] : &s->rgb[(i - SHAPES) / 3][(i - SHAPES) % 3];
}

/* Which of them a picture of s shows: that change if the number does. A class's builder has no use
   for some. */
static inline void find_visible(const world_scene *s, size_t side, char visible[SHAPES + SHADES])
{
    pictures p = pictures_make(2, side);
    size_t i;
    render(s, &p, 0);
    for (i = 0; i < SHAPES + SHADES; i++) {
        world_scene other = *s;
        float *x = true_number(&other, i);
        *x += *x < .5f ? .25f : -.25f;
        render(&other, &p, 1);
        visible[i] = memcmp(picture_at(&p, 0), picture_at(&p, 1), side * side * 3) != 0;
    }
    pictures_free(&p);
}

/* How far two members of a class are apart in what can be seen: mean difference of the build's
   numbers, and of the colours'. */
static inline double true_distance(world_scene *a, world_scene *b,
                                   const char visible[SHAPES + SHADES])
{
    double sum[2] = {0, 0}, n[2] = {0, 0};
    size_t i;
    for (i = 0; i < SHAPES + SHADES; i++)
        if (visible[i])
            sum[i >= SHAPES] += fabs((double)*true_number(a, i) - (double)*true_number(b, i)),
                n[i >= SHAPES]++;
    return sum[0] / fmax(n[0], 1) + sum[1] / fmax(n[1], 1);
}

/* Members of the subject's class in one place, light and view, all with the subject's own marks and
   texture: the rank correlation of each metric with their true distance. */
static inline int measure_metrics(work *w)
{
    enum { MEMBERS = 24, PAIRS = MEMBERS * (MEMBERS - 1) / 2 };
    const networks *net = &w->w->net;
    size_t side = picture_side(w->p), i, j, k = 0;
    pictures p = pictures_make(MEMBERS, side);
    world_scene scene[MEMBERS];
    double truth[PAIRS], by[3][PAIRS];
    float *z, *clip = NULL, lpips[PAIRS];
    const pictures *set[8];
    size_t index[8];
    const char *labels[8];
    char visible[SHAPES + SHADES];
    int bad = 0;
    for (i = 0; i < MEMBERS; i++) {
        world_scene member;
        world_subject_view(w->c->subject, WORLD_GRASS, WORLD_FRONT, 1, &scene[i]);
        world_sample(world_seed(WORLD_VALIDATION, 100 * (uint64_t)w->c->subject + i), &member);
        if (!i) continue; /* the subject itself is one of them */
        memcpy(scene[i].shape, member.shape, sizeof member.shape);
        memcpy(scene[i].rgb, member.rgb, sizeof member.rgb);
    }
    for (i = 0; i < MEMBERS; i++) render(&scene[i], &p, i);
    find_visible(&scene[0], side, visible);
    z = dino_of(net, p.view, MEMBERS);
    if (net->clip) {
        clip = (float *)malloc(MEMBERS * net->clip->config.projection_dim * sizeof *clip);
        db_clip_embed_images(net->clip, p.view, MEMBERS, clip);
    }
    if (net->lpips) db_lpips_distances(net->lpips, p.view, MEMBERS, lpips);
    for (i = 0; i < MEMBERS; i++)
        for (j = i + 1; j < MEMBERS; j++, k++) {
            size_t D = net->dino ? net->dino->config.hidden_size : 0,
                   E = net->clip ? net->clip->config.projection_dim : 0;
            truth[k] = true_distance(&scene[i], &scene[j], visible);
            by[0][k] = z ? -db_cosine_paired(z + i * D, z + j * D, 1, D) : 0;
            by[1][k] = clip ? -db_cosine_paired(clip + i * E, clip + j * E, 1, E) : 0;
            by[2][k] = net->lpips ? (double)lpips[k] : 0;
        }
    if (z) set_value(w, "follows_dino", "", stat_spearman(truth, by[0], PAIRS));
    if (clip) set_value(w, "follows_clip", "", stat_spearman(truth, by[1], PAIRS));
    if (net->lpips) set_value(w, "follows_lpips", "", stat_spearman(truth, by[2], PAIRS));
    for (i = 0; i < 8; i++) set[i] = &p, index[i] = i, labels[i] = i ? "" : "the subject";
    if (db_status(net->ctx) == DB_OK) bad = save_strip(w, set, index, labels, 8);
    pictures_free(&p);
    free(z), free(clip);
    return bad || db_status(net->ctx) != DB_OK;
}

/* ---- one cell -------------------------------------------------------------------------------- */

static inline int train_and_measure(work *w)
{
    int measures = w->c->measures;
    size_t steps = (size_t)w->c->settings.steps;
    int k;
    if (start_training(w)) return 1;
    for (k = 0; k < TRACES && measures & MEASURE_TRACE; k++) {
        char suffix[16];
        size_t at = trace_step(k, (double)steps);
        if (k && at == trace_step(k - 1, (double)steps)) continue;
        snprintf(suffix, sizeof suffix, "@%zu", at);
        if (train_until(w, at) || measure_standard(w, suffix, at == steps)) return 1;
    }
    if (measures & MEASURE_TRACE) return 0;
    return train_until(w, steps) || measure_standard(w, "", 1) ||
        (measures & MEASURE_LEAKS && measure_leaks(w)) ||
        (measures & MEASURE_APPLICATIONS && measure_applications(w));
}

/* A training that diverges is a result, the value "diverged"; 0 if it was not that. */
static inline int note_divergence(db_ctx *ctx, record *out)
{
    if (db_status(ctx) != DB_ERROR_NUMERIC) return 0;
    db_clear_error(ctx);
    record_set(out, "diverged", 1);
    return 1;
}

/* Fills out->value, labels and seconds. Not 0 after an error, which the context tells. */
static inline int compute_cell(const workplace *wp, const cell *c, record *out)
{
    db_ctx *ctx = wp->net.ctx;
    double began = now();
    prompts name = name_subject(&c->settings, c->subject);
    work w;
    int bad;
    memset(&w, 0, sizeof w);
    w.w = wp, w.c = c, w.out = out;
    phrase(w.instance, sizeof w.instance, "", "", name.word, name.noun, "");
    phrase(w.class_prompt, sizeof w.class_prompt, "", "", "", name.noun, "");
    w.real = all_photos(c->subject, wp->size->photo_side);
    if (strcmp(c->settings.shots, "usual")) {
        w.photos = take_photos(&c->settings, c->subject, wp->size->photo_side);
    } else { /* the first of them */
        w.photos = w.real, w.photos.n = (size_t)c->settings.photos;
    }
    w.held_out = render_held_out(c->subject, wp->size->held_out, wp->size->photo_side);
    bad = open_base(wp, &w.p);
    if (!bad)
        bad = c->measures & MEASURE_SR      ? measure_sr(&w)
            : c->measures & MEASURE_METRICS ? measure_metrics(&w)
                                            : train_and_measure(&w);
    db_dreambooth_free(w.d);
    db_pipeline_free(w.p);
    if (w.photos.rgb != w.real.rgb) pictures_free(&w.photos);
    pictures_free(&w.real), pictures_free(&w.held_out);
    free(w.embeddings);
    out->seconds = now() - began;
    return !note_divergence(ctx, out) && (bad || db_status(ctx) != DB_OK);
}

#endif
