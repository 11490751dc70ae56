/* protocol.h - the paper's protocol (section 4.1) on a real checkpoint: for every subject a
   fine-tuning, 25 prompts, 4 pictures each, and the means of DINO, CLIP-I, CLIP-T, DIV, PRES beside
   Table 1. Include after cells.h.

   --subjects DIR has a folder of photos for each subject. --prompts FILE is laid out as the paper's
   published prompts_and_classes.txt: lines "folder,class", and lines that hold a template in
   quotes, 'a {0} {1} in the snow', where {0} is the identifier and {1} the class. Templates behind
   a line that holds "Live" are for cats and dogs, those before it for all else. */
#ifndef PROTOCOL_H
#define PROTOCOL_H

enum { PROTOCOL_SUBJECTS = 128, PROTOCOL_PROMPTS = 64 };

typedef struct protocol {
    struct { char folder[128], class_noun[64]; } subject[PROTOCOL_SUBJECTS];
    size_t n;
    char template[2][PROTOCOL_PROMPTS][160]; /* of objects; of live subjects */
    size_t n_templates[2];
} protocol;

static inline int is_live(const char *class_noun)
{
    return !strcmp(class_noun, "cat") || !strcmp(class_noun, "dog");
}

/* Reads FILE; not 0 after a complaint that names the line. */
static inline int read_protocol(const char *path, protocol *p)
{
    size_t n, k;
    char **lines = load_lines(path, &n);
    int live = 0, bad = 0;
    memset(p, 0, sizeof *p);
    if (!lines) return fail("cannot read %s: %s", path, strerror(errno));
    for (k = 0; k < n && !bad; k++) {
        const char *quote = strpbrk(lines[k], "'\""), *end = quote ? strrchr(quote, *quote) : NULL,
                   *comma = strchr(lines[k], ',');
        if (strstr(lines[k], "Live")) live = 1;
        if (end && end > quote && strstr(quote, "{1}")) {
            if (p->n_templates[live] == PROTOCOL_PROMPTS)
                bad = fail("%s:%zu: more than %d prompts", path, k + 1, PROTOCOL_PROMPTS);
            else
                snprintf(p->template[live][p->n_templates[live]++], 160, "%.*s",
                         (int)(end - quote - 1), quote + 1);
        } else if (comma && !quote && strcmp(lines[k], "subject_name,class")) {
            if (p->n == PROTOCOL_SUBJECTS)
                bad = fail("%s:%zu: more than %d subjects", path, k + 1, PROTOCOL_SUBJECTS);
            else {
                snprintf(p->subject[p->n].folder, 128, "%.*s", (int)(comma - lines[k]), lines[k]);
                snprintf(p->subject[p->n++].class_noun, 64, "%s", comma + 1);
            }
        }
    }
    for (k = 0; k < n; k++) free(lines[k]);
    free(lines);
    if (!bad && !p->n) bad = fail("%s names no subjects: lines \"folder,class\"", path);
    for (k = 0; k < p->n && !bad; k++)
        if (!p->n_templates[is_live(p->subject[k].class_noun)])
            bad = fail("%s has no prompts for %s", path, p->subject[k].class_noun);
    return bad;
}

/* The template with {0} and {1} filled in; a {0} that is "" takes a blank with it. */
static inline void fill_template(const char *template, const char *word, const char *noun,
                                 char *out, size_t size)
{
    size_t n = 0;
    while (*template && n + 1 < size) {
        const char *part = !strncmp(template, "{0}", 3) ? word
            : !strncmp(template, "{1}", 3)              ? noun
                                                        : NULL;
        if (!part) out[n++] = *template++;
        else n += (size_t)snprintf(out + n, size - n, "%s", part), template += 3;
        if (part && !*part && *template == ' ') template++;
        if (n >= size) n = size - 1;
    }
    out[n] = 0;
}

/* Trains on one subject and measures; what the photos are decides with the settings on the key. */
static inline int protocol_subject(const workplace *wp, const protocol *p, size_t which,
                                   const photos *photo, const cell *c, size_t class_pictures,
                                   record *out)
{
    const networks *net = &wp->net;
    const char *noun = p->subject[which].class_noun;
    int live = is_live(noun);
    size_t n_prompts = p->n_templates[live], each = wp->size->each, n = n_prompts * each, k;
    char (*texts)[192] = (char(*)[192])malloc(2 * n_prompts * sizeof *texts), word[64];
    const char **with = (const char **)malloc((n + 1) * sizeof *with),
               **without = (const char **)malloc((n + 1) * sizeof *without),
               **classes = (const char **)malloc((class_pictures + 1) * sizeof *classes);
    double began = now();
    pictures made, tuned, original;
    db_evaluation e;
    db_scores scores;
    work w;
    int bad;
    memset(&w, 0, sizeof w), memset(&e, 0, sizeof e);
    memset(&made, 0, sizeof made), memset(&tuned, 0, sizeof tuned);
    memset(&original, 0, sizeof original);
    w.w = wp, w.c = c, w.out = out;
    w.photos.view = photo->view, w.photos.n = photo->n;
    identifier_words(&c->settings, word, sizeof word);
    phrase(w.instance, sizeof w.instance, "", "", word, noun, "");
    phrase(w.class_prompt, sizeof w.class_prompt, "", "", "", noun, "");
    for (k = 0; k < n_prompts; k++) {
        fill_template(p->template[live][k], word, noun, texts[2 * k], sizeof *texts);
        fill_template(p->template[live][k], "", noun, texts[2 * k + 1], sizeof *texts);
    }
    for (k = 0; k < n; k++) with[k] = texts[2 * (k / each)], without[k] = texts[2 * (k / each) + 1];
    for (k = 0; k < class_pictures; k++) classes[k] = w.class_prompt;
    bad = open_base(wp, &w.p) || start_training(&w) ||
        train_until(&w, (size_t)c->settings.steps);
    if (!bad) {
        uint64_t seed = picture_seed(c->seed, SEED_CLASS);
        db_dreambooth_free(w.d), w.d = NULL; /* its memory */
        made = draw(wp, w.p, with, n, picture_seed(c->seed, SEED_SUBJECT));
        tuned = draw(wp, w.p, classes, class_pictures, seed);
        original = original_pictures(wp, classes, class_pictures, picture_side(w.p), seed);
        e.dino = net->dino, e.clip = net->clip, e.lpips = net->lpips;
        e.generated = made.view, e.n_generated = n, e.prompts = without;
        e.real = photo->view, e.n_real = photo->n;
        e.class_images = tuned.view, e.n_class = class_pictures;
        e.original_class = original.view, e.n_original = class_pictures;
        bad = db_evaluate(net->ctx, &e, &scores) != DB_OK;
    }
    if (!bad) {
        const pictures *set[8];
        size_t index[8];
        const char *labels[8];
        if (scores.dino - scores.pres_original < LEARNT) scores.drift = (double)NAN;
#define PROTOCOL_SCORE(field, name, what)                                                          \
    if (scores.field == scores.field) record_set(out, #field, scores.field);
        DB_SCORES(PROTOCOL_SCORE)
#undef PROTOCOL_SCORE
        size_t n_shown = MIN(n_prompts, (size_t)8);
        for (k = 0; k < n_shown; k++) {
            set[k] = &made, index[k] = k * n_prompts / n_shown * each;
            labels[k] = with[index[k]];
        }
        bad = save_strip(&w, set, index, labels, n_shown);
    }
    out->seconds = now() - began;
    db_dreambooth_free(w.d);
    db_pipeline_free(w.p);
    pictures_free(&made), pictures_free(&tuned), pictures_free(&original);
    free(texts), free((void *)with), free((void *)without), free((void *)classes);
    return !note_divergence(net->ctx, out) && (bad || db_status(net->ctx) != DB_OK);
}

/* The means of all records beside the paper's Table 1. */
static inline void print_protocol(const records *all)
{
    static const struct { const char *name, *value; double real, imagen, sd; } rows[] = {
        {"DINO", "dino", .774, .696, .668},
        {"CLIP-I", "clip_i", .885, .812, .803},
        {"CLIP-T", "clip_t", (double)NAN, .306, .305},
        {"DIV", "div", (double)NAN, (double)NAN, (double)NAN},
        {"PRES", "pres", (double)NAN, (double)NAN, (double)NAN},
        {"DINO of photos", "dino_real", .774, (double)NAN, (double)NAN},
        {"CLIP-I of photos", "clip_i_real", .885, (double)NAN, (double)NAN},
        {"normalised fidelity", "normalized_fidelity", (double)NAN, (double)NAN, (double)NAN},
        {"drift", "drift", (double)NAN, (double)NAN, (double)NAN}};
    size_t k, i;
    printf("\n%-20s %8s %8s   paper: real  Imagen  Stable Diffusion\n", "", "mean", "subjects");
    for (k = 0; k < sizeof rows / sizeof *rows; k++) {
        double sum = 0;
        size_t n = 0;
        for (i = 0; i < all->n; i++) {
            double v = record_get(&all->item[i], rows[k].value);
            if (v == v) sum += v, n++;
        }
        printf("%-20s %8.3f %8zu   %11.3f %7.3f %7.3f\n", rows[k].name,
               n ? sum / (double)n : (double)NAN, n, rows[k].real, rows[k].imagen, rows[k].sd);
    }
}

#endif
