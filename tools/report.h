/* report.h - records -> report.html (one file, no network) and results.json. Include after
   verdicts.h, html.h and cells.h.

   A pass over the records and nothing else, without dates: the same records give the same bytes. */
#ifndef REPORT_H
#define REPORT_H

typedef struct page {
    FILE *f;
    const records *all;
    const char *folder;
    int inference;    /* 0: a smoke test, from which nothing is concluded */
    double most_steps; /* of the scale */
    size_t strips, missing; /* written; pictures of cells that are not in the folder */
} page;

/* ---- which values an experiment shows -------------------------------------------------------- */

static const struct { const char *experiment, *values, *plots; } views[] = {
    {"map", "", ""},
    {"prior", "dino fidelity clip_i clip_t div div_placed div_bare pres pres_original drift "
              "class_diversity_64 class_diversity_64_original place_right overfit",
     "pres div drift"},
    {"noun", "dino fidelity clip_i clip_t place_right class_right noun_right", "dino clip_i"},
    {"photos", "dino fidelity clip_i clip_t div place_right", "dino clip_i"},
    {"sr", "", "lpips_1e-5 detail_1e-5 kept_1e-5"},
    {"baselines", "dino fidelity clip_i clip_t div place_right class_right",
     "dino fidelity clip_t place_right"},
    {"applications", "", ""},
    {"identifier", "dino clip_t pres drift div place_right class_right color_of_word",
     "dino drift"},
    {"trained", "dino fidelity clip_t pres drift place_right overfit", "dino drift overfit"},
    {"lambda", "dino clip_t div pres drift class_diversity", "dino drift"},
    {"class_images", "dino clip_t div pres drift class_diversity", "dino drift"},
    {"class_guidance", "dino clip_t div pres drift class_diversity", "drift class_diversity"},
    {"entanglement", "fidelity clip_t place_right bare_in_first_place bare_from_front div",
     "bare_in_first_place bare_from_front"},
    {"frequency", "dino clip_t pres drift place_right", "dino drift"},
    {"first_version", "dino fidelity clip_t pres drift place_right overfit", "dino drift"},
    {"demo", "dino clip_i clip_t fidelity place_right place_right_original nearest_right "
             "nearest_right_original", "fidelity nearest_right"},
    {"metrics", "follows_dino follows_clip follows_lpips", ""}};

/* The names of an experiment's conditions; returns how many. */
static inline size_t condition_names(const char *experiment_name, const char *out[CONDITIONS])
{
    size_t c, n = 0;
    for (c = 0; c < CONDITIONS; c++)
        if (!strcmp(conditions[c].experiment, experiment_name)) out[n++] = conditions[c].name;
    return n;
}

/* The paper's figures where a table has the same cell. Imagen's, but for "baselines": Stable
   Diffusion's, as textual inversion's. */
static const struct { const char *experiment, *condition, *value, *figure; } paper_figures[] = {
    {"prior", "with", "pres", ".493"},       {"prior", "without", "pres", ".664"},
    {"prior", "with", "div", ".391"},        {"prior", "without", "div", ".371"},
    {"prior", "with", "dino", ".684"},       {"prior", "without", "dino", ".712"},
    {"prior", "with", "clip_i", ".815"},     {"prior", "without", "clip_i", ".828"},
    {"prior", "with", "clip_t", ".308"},     {"prior", "without", "clip_t", ".306"},
    {"demo", "tuned", "dino", ".696"},       {"demo", "tuned", "clip_i", ".812"},
    {"demo", "tuned", "clip_t", ".306"},
    {"noun", "right", "dino", ".744"},       {"noun", "right", "clip_i", ".853"},
    {"noun", "none", "dino", ".303"},        {"noun", "none", "clip_i", ".607"},
    {"noun", "wrong", "dino", ".454"},       {"noun", "wrong", "clip_i", ".728"},
    {"photos", "1", "dino", ".494, .798"},   {"photos", "2", "dino", ".515, .851"},
    {"photos", "3", "dino", ".596, .871"},   {"photos", "4", "dino", ".604, .876"},
    {"photos", "5", "dino", ".597, .864"},   {"baselines", "dreambooth", "dino", ".668"},
    {"baselines", "dreambooth", "clip_i", ".803"}, {"baselines", "dreambooth", "clip_t", ".305"},
    {"baselines", "inversion", "dino", ".569"},    {"baselines", "inversion", "clip_i", ".780"},
    {"baselines", "inversion", "clip_t", ".255"}};

static inline const char *paper_figure(const char *experiment_name, const char *condition,
                                       const char *value)
{
    size_t k;
    for (k = 0; k < sizeof paper_figures / sizeof *paper_figures; k++)
        if (!strcmp(paper_figures[k].experiment, experiment_name) &&
            !strcmp(paper_figures[k].condition, condition) &&
            !strcmp(paper_figures[k].value, value))
            return paper_figures[k].figure;
    return NULL;
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Mean and deviation of n of `of` subjects; 0: of as many as there are. */
static inline void write_mean_beside(page *g, const double *x, size_t n, size_t of,
                                     const char *figure)
{
    fprintf(g->f, "<td class=\"n\">");
    html_number(g->f, stat_mean(x, n), 0);
    if (n > 1) fprintf(g->f, " <span class=\"dim\">&plusmn; %.3f</span>", stat_sd(x, n));
    if (n && n < of) fprintf(g->f, "<br><span class=\"dim\">of %zu subjects</span>", n);
    if (figure) fprintf(g->f, "<br><span class=\"dim\">paper %s</span>", figure);
    fprintf(g->f, "</td>");
}

static inline void write_mean(page *g, const double *x, size_t n)
{
    write_mean_beside(g, x, n, 0, NULL);
}

/* Values by conditions: means over subjects, the subjects' standard deviation. */
static inline void write_table(page *g, const experiment *x, const char *value_names)
{
    const char *names[CONDITIONS];
    char value[16][40];
    double v[STAT_MAX];
    size_t n = condition_names(x->name, names), m = split_words(value_names, value, 16), c, k,
           of[CONDITIONS];
    if (!m) return;
    fprintf(g->f, "<div class=\"scroll\"><table><tr><th></th>");
    for (c = 0; c < n; c++) fprintf(g->f, "<th class=\"n\">%s</th>", names[c]);
    fprintf(g->f, "</tr>\n<tr><td>subjects</td>");
    for (c = 0; c < n; c++) {
        of[c] = condition_values(g->all, x, names[c], value[0], v);
        fprintf(g->f, "<td class=\"n\">%zu</td>", of[c]);
    }
    fprintf(g->f, "</tr>\n");
    for (k = 0; k < m; k++) {
        fprintf(g->f, "<tr><td>%s</td>", value[k]);
        for (c = 0; c < n; c++)
            write_mean_beside(g, v, condition_values(g->all, x, names[c], value[k], v), of[c],
                              paper_figure(x->name, names[c], value[k]));
        fprintf(g->f, "</tr>\n");
    }
    fprintf(g->f, "</table></div>\n");
}

/* Every subject a thin line over the conditions, their mean a thick one. */
static inline void write_plot(page *g, const experiment *x, const char *value)
{
    const char *names[CONDITIONS];
    size_t n = condition_names(x->name, names), c;
    double at[CONDITIONS], y[STAT_MAX][CONDITIONS], mean[CONDITIONS], low = 1e30, high = -1e30;
    html_axes a;
    int k;
    for (c = 0; c < n; c++) {
        double v[STAT_MAX];
        at[c] = (double)c;
        mean[c] = stat_mean(v, condition_values(g->all, x, names[c], value, v));
        for (k = 0; k < x->n_subjects; k++) {
            y[k][c] = subject_value(g->all, x, names[c], k, value);
            if (y[k][c] == y[k][c]) low = fmin(low, y[k][c]), high = fmax(high, y[k][c]);
        }
    }
    if (high < low) return;
    a = html_plot_begin(g->f, value, 100 + 62 * (double)n, 250, -.5, (double)n - .5, low, high);
    for (c = 0; c < n; c++) html_tick(g->f, &a, (double)c, names[c]);
    for (k = 0; k < x->n_subjects; k++) html_line(g->f, &a, at, y[k], n, "#9aa7b8", .8, .8);
    html_line(g->f, &a, at, mean, n, html_colors[0], 2.4, 1);
    html_plot_end(g->f);
}

/* ---- pictures -------------------------------------------------------------------------------- */

static inline void write_cell_strip(page *g, const char *cell_name, const char *title)
{
    const record *r = records_find(g->all, cell_name);
    char path[4096];
    uint8_t *png;
    size_t bytes, n, k;
    FILE *f;
    if (!r || !r->labels[0]) return;
    strip_path(g->folder, r->same_as[0] ? r->same_as : cell_name, path, sizeof path);
    f = fopen(path, "rb");
    g->missing += f == NULL;
    if (!f) return;
    png = (uint8_t *)malloc(1 << 22);
    bytes = fread(png, 1, 1 << 22, f);
    fclose(f);
    for (n = 1, k = 0; r->labels[k]; k++) n += r->labels[k] == '|';
    fprintf(g->f, "<div class=\"who\">");
    html_text(g->f, title);
    fprintf(g->f, " <code>");
    html_text(g->f, cell_name);
    fprintf(g->f, "</code></div>");
    html_strip(g->f, g->strips++, png, bytes, n, r->labels);
    free(png);
}

/* The subject's photos that the settings train on, rendered again. */
static inline void write_photos(page *g, const char *subject, const settings *s)
{
    enum { SIDE = 64 };
    int which = world_subject_named(subject), k, y,
        n = s->photos > 0 ? (int)s->photos : world_subject(which).n_photos;
    uint8_t *one = (uint8_t *)malloc(SIDE * SIDE * 3),
            *all = (uint8_t *)malloc((size_t)n * SIDE * SIDE * 3), *png = NULL;
    char labels[256] = "", err[IMG_ERROR_SIZE];
    size_t bytes;
    for (k = 0; k < n; k++) {
        world_scene scene;
        photo_scene(s, which, k, &scene);
        world_render(&scene, SIDE, 0, 0, SIDE, SIDE, 3, one, NULL);
        for (y = 0; y < SIDE; y++)
            memcpy(all + (size_t)(y * n + k) * SIDE * 3, one + y * SIDE * 3, SIDE * 3);
        snprintf(labels + strlen(labels), sizeof labels - strlen(labels), "%sphoto %d",
                 k ? "|" : "", k + 1);
    }
    if (img_encode_png(all, (size_t)n * SIDE, SIDE, &png, &bytes, err, sizeof err) == IMG_OK) {
        fprintf(g->f, "<div class=\"who\">%s</div>", subject);
        html_strip(g->f, g->strips++, png, bytes, (size_t)n, labels);
        img_free_png(png);
    }
    free(one), free(all);
}

static inline void write_pictures(page *g, const experiment *x, int subjects)
{
    const char *names[CONDITIONS];
    size_t n = condition_names(x->name, names), c, first = 0;
    int k;
    while (strcmp(conditions[first].experiment, x->name)) first++;
    for (k = 0; k < subjects && k < x->n_subjects; k++) {
        char cell_name[128];
        int any = 0, shown = -1; /* how many photos, of which kind, were shown last */
        setting_WORD shots = "";
        for (c = 0; c < n; c++) {
            snprintf(cell_name, sizeof cell_name, "%s/%s/%s/0", x->name, names[c], x->subjects[k]);
            any = any || records_find(g->all, cell_name);
        }
        if (!any) continue;
        for (c = 0; c < n; c++) {
            settings s = settings_default();
            settings_change(&s, conditions[first + c].changes);
            if (strcmp(x->name, "metrics") && (shown != (int)s.photos || strcmp(shots, s.shots)))
                write_photos(g, x->subjects[k], &s);
            shown = (int)s.photos, snprintf(shots, sizeof shots, "%s", s.shots);
            snprintf(cell_name, sizeof cell_name, "%s/%s/%s/0", x->name, names[c], x->subjects[k]);
            write_cell_strip(g, cell_name, names[c]);
        }
    }
}

/* ---- claims ---------------------------------------------------------------------------------- */

static inline const char *relation_text(const claim *c)
{
    return c->relation == MORE    ? "more than"
        : c->relation == LESS     ? "less than"
        : c->relation == ALIKE    ? "alike"
        : c->relation == RISES    ? *c->b == '-' ? "falls" : "rises"
                                  : "follows class frequency";
}

/* "clip_t: with alike without" */
static inline void write_claim_test(page *g, const claim *c)
{
    fprintf(g->f, "%s: %s %s %s", c->value, c->a, relation_text(c),
            *c->b == '=' || *c->b == '@' || *c->b == '-' ? c->b + 1 : c->b);
}

static inline void write_verdict(page *g, const claim *c, const outcome *o)
{
    int open = !strcmp(o->verdict, "inconclusive");
    fprintf(g->f, "<td><span class=\"%s\">%s</span>", o->verdict, o->verdict);
    if (open) {
        fprintf(g->f, "<br><span class=\"dim\">");
        if (c->relation == ALIKE && o->power == o->power)
            fprintf(g->f, "power %.2f if there is no difference", o->power);
        else if (o->power == o->power)
            fprintf(g->f, "power %.2f for the paper's %+.3f; ", o->power, c->paper);
        if (o->detectable < 1e9) fprintf(g->f, "80 %% for %.3f", o->detectable);
        else if (o->detectable == o->detectable)
            fprintf(g->f, "no difference is found at this step with %zu subjects", o->n);
        fprintf(g->f, "</span>");
    }
    fprintf(g->f, "</td>");
}

/* The claims of one experiment, or (NULL) those with an id. */
static inline void write_claims(page *g, const outcome *o, const char *experiment_name)
{
    size_t k;
    fprintf(g->f,
            "<div class=\"scroll\"><table><tr><th></th><th>claim</th><th>measured</th>"
            "<th>paper</th><th class=\"n\">ours</th><th class=\"n\">difference%s</th>"
            "<th class=\"n\">n</th>%s</tr>\n",
            g->inference ? ", 95 %" : "",
            g->inference ? "<th class=\"n\">p</th><th class=\"n\">p, Holm</th><th>verdict</th>"
                         : "");
    for (k = 0; k < CLAIMS; k++) {
        const claim *c = &claims[k];
        if (experiment_name ? strcmp(c->experiment, experiment_name) : !c->id[0]) continue;
        fprintf(g->f, "<tr><td>%s</td><td>", c->id);
        html_text(g->f, c->says);
        fprintf(g->f, "</td><td>");
        write_claim_test(g, c);
        fprintf(g->f, "</td><td>");
        html_text(g->f, c->numbers);
        fprintf(g->f, "</td><td class=\"n\">");
        html_number(g->f, o[k].a, 0);
        if (c->relation != RISES && c->relation != FOLLOWS)
            fprintf(g->f, " / "), html_number(g->f, o[k].b, 0);
        fprintf(g->f, "</td><td class=\"n\">");
        html_number(g->f, o[k].difference, 1);
        if (g->inference && o[k].low == o[k].low)
            fprintf(g->f, "<br><span class=\"dim\">%+.3f &hellip; %+.3f</span>", o[k].low,
                    o[k].high);
        fprintf(g->f, "</td><td class=\"n\">%zu of %d</td>", o[k].n,
                experiment_named(c->experiment)->n_subjects);
        if (g->inference) { /* against the claim where that is what has been shown */
            int against = o[k].verdict[0] == 'o' || o[k].verdict[0] == 'd';
            fprintf(g->f, "<td class=\"n\">%.2g</td><td class=\"n\">%.2g</td>",
                    against ? o[k].against : o[k].p, against ? o[k].against_holm : o[k].p_holm);
            write_verdict(g, c, &o[k]);
        }
        fprintf(g->f, "</tr>\n");
    }
    fprintf(g->f, "</table></div>\n");
}

/* ---- what single experiments add ------------------------------------------------------------- */

/* The method of a condition of "map": what stands before its first '-'. */
static inline size_t method_length(const char *condition) { return strcspn(condition, "-"); }

/* A value of a condition of "map" at a step; not a number where a training had diverged by then. */
static inline double traced(page *g, const experiment *x, const char *condition, const char *value,
                            size_t step)
{
    char name[64];
    double v[STAT_MAX];
    size_t n, there = 0;
    int k;
    for (k = 0; k < x->n_subjects; k++) {
        char cell_name[128];
        snprintf(cell_name, sizeof cell_name, "%s/%s/%s/0", x->name, condition, x->subjects[k]);
        there += records_find(g->all, cell_name) != NULL;
    }
    snprintf(name, sizeof name, "%s@%zu", value, step);
    n = condition_values(g->all, x, condition, name, v);
    return n < there ? (double)NAN : stat_mean(v, n);
}

/* The steps of a condition, as the plan has them. */
static inline double planned_steps(const experiment *x, const char *condition)
{
    settings s = settings_default();
    size_t c;
    for (c = 0; c < CONDITIONS; c++)
        if (!strcmp(conditions[c].experiment, x->name) && !strcmp(conditions[c].name, condition))
            settings_change(&s, conditions[c].changes);
    return s.steps;
}

/* What decides: fidelity to held-out renders times the share of places that are right. */
static inline double map_score(page *g, const experiment *x, const char *condition, size_t step)
{
    return traced(g, x, condition, "fidelity", step) * traced(g, x, condition, "place_right", step);
}

static inline void write_map(page *g, const experiment *x)
{
    size_t trace_steps[TRACES];
    static const char *const values[] = {"fidelity", "place_right", "overfit"};
    const char *names[CONDITIONS];
    size_t n = condition_names(x->name, names), first, last, c, k, v;
    for (first = 0; first < n; first = last) {
        double best = -1e9;
        char chosen[64] = "-";
        int edge = 0;
        for (k = 0; k < TRACES; k++)
            trace_steps[k] =
                trace_step((int)k, fmin(planned_steps(x, names[first]), g->most_steps));
        for (last = first; last < n && method_length(names[last]) == method_length(names[first]) &&
             !strncmp(names[last], names[first], method_length(names[first])); last++) {}
        fprintf(g->f, "<h3>%.*s</h3>", (int)method_length(names[first]), names[first]);
        for (v = 0; v < 3; v++) {
            double y[CONDITIONS][TRACES], at[TRACES], low = 1e30, high = -1e30;
            html_axes a;
            for (c = first; c < last; c++)
                for (k = 0; k < TRACES; k++) {
                    at[k] = (double)trace_steps[k];
                    y[c][k] = traced(g, x, names[c], values[v], trace_steps[k]);
                    if (y[c][k] == y[c][k]) low = fmin(low, y[c][k]), high = fmax(high, y[c][k]);
                }
            if (high < low) continue;
            a = html_plot_begin(g->f, values[v], 340, 230, 0, 1.08 * at[TRACES - 1], low, high);
            for (k = 0; k < TRACES; k++) {
                char tick[16];
                snprintf(tick, sizeof tick, "%zu", trace_steps[k]);
                html_tick(g->f, &a, at[k], tick);
            }
            for (c = first; c < last; c++) {
                const char *color = html_colors[c - first];
                html_line(g->f, &a, at, y[c], TRACES, color, 1.8, 1);
                fprintf(g->f, "<text x=\"%.0f\" y=\"222\" font-size=\"10\" fill=\"%s\">%s</text>",
                        a.left + 95 * (double)(c - first), color, names[c]);
            }
            html_plot_end(g->f);
        }
        fprintf(g->f, "<table><tr><th>fidelity &times; places right"
                      "</th>");
        for (k = 0; k < TRACES; k++)
            fprintf(g->f, "<th class=\"n\">%zu steps</th>", trace_steps[k]);
        fprintf(g->f, "</tr>");
        for (c = first; c < last; c++) {
            fprintf(g->f, "<tr><td>%s</td>", names[c]);
            for (k = 0; k < TRACES; k++) {
                double score = map_score(g, x, names[c], trace_steps[k]);
                if (score > best) {
                    best = score, edge = c == first || c + 1 == last || k == 0 || k + 1 == TRACES;
                    snprintf(chosen, sizeof chosen, "%s, %zu steps", names[c], trace_steps[k]);
                }
                fprintf(g->f, "<td class=\"n\" style=\"background:rgba(53,102,176,%.2f)\">",
                        score == score ? fmin(fmax(score, 0), 1) * .6 : 0);
                html_number(g->f, score, 0);
                fprintf(g->f, "</td>");
            }
            fprintf(g->f, "</tr>");
        }
        fprintf(g->f, "</table><p>%s: %s%s.",
                is_complete(g->all, x) ? "Highest" : "Highest so far", chosen,
                edge ? ", at the edge of what was tried: the best may lie beyond" : "");
        for (k = 0; k < sizeof methods / sizeof *methods; k++)
            if (strlen(methods[k].train) == method_length(names[first]) &&
                !strncmp(methods[k].train, names[first], method_length(names[first])))
                fprintf(g->f,
                        " The other experiments take %g, %d steps (PAPER_NOTES.md, "
                        "\"Rule for map\").",
                        methods[k].lr, methods[k].steps);
        fprintf(g->f, "</p>\n");
    }
}

/* Without the subjects that were hardly learnt, which have none; says so. */
static inline void write_share(page *g, const experiment *x, const char *condition,
                               const char *value)
{
    double v[STAT_MAX];
    size_t of = condition_values(g->all, x, condition, "leak_subject", v),
           n = condition_values(g->all, x, condition, value, v);
    write_mean_beside(g, v, n, of, NULL);
}

static inline void write_leaks(page *g, const experiment *x)
{
    static const struct { const char *name, *text; } rows[] = {
        {"subject", "a [V] dog"}, {"class", "a dog"}, {"word", "a [V]"},
        {"word_other", "a [V] car"}, {"other", "a cat"}, {"empty", "(empty)"}};
    double v[STAT_MAX];
    char name[64];
    size_t k;
    fprintf(g->f,
            "<h3>Leakage: DINO likeness of six prompts to the photos</h3><table><tr>"
            "<th>prompt (for a dog)</th><th class=\"n\">before</th><th class=\"n\">after, with "
            "prior preservation</th><th class=\"n\">after, without</th><th class=\"n\">share of "
            "the subject's own gain, with</th><th class=\"n\">without</th></tr>");
    for (k = 0; k < 6; k++) {
        fprintf(g->f, "<tr><td>%s</td>", rows[k].text);
        snprintf(name, sizeof name, "leak_before_%s", rows[k].name);
        write_mean(g, v, condition_values(g->all, x, "with", name, v));
        snprintf(name, sizeof name, "leak_%s", rows[k].name);
        write_mean(g, v, condition_values(g->all, x, "with", name, v));
        write_mean(g, v, condition_values(g->all, x, "without", name, v));
        snprintf(name, sizeof name, "leak_share_%s", rows[k].name);
        write_share(g, x, "with", name);
        write_share(g, x, "without", name);
        fprintf(g->f, "</tr>");
    }
    fprintf(g->f, "</table>\n");
}

static inline void write_sr(page *g, const experiment *x)
{
    static const char *const values[][2] = {
        {"lpips", "LPIPS, lower is better"},
        {"detail", "correlation of the restored detail with the true one"},
        {"kept", "share of the true detail that is there, 1: all of it"},
        {"psnr", "PSNR in dB, which rewards blur"}};
    static const char *const levels[] = {"1e-5", "1e-3", ".25"};
    const char *names[CONDITIONS];
    size_t n = condition_names(x->name, names), c, k, l;
    double v[STAT_MAX];
    for (k = 0; k < 4; k++) {
        fprintf(g->f,
                "<table><tr><th>%s<br><span class=\"dim\">trained at \\ sampled at</span></th>",
                values[k][1]);
        for (l = 0; l < 3; l++) fprintf(g->f, "<th class=\"n\">%s</th>", levels[l]);
        fprintf(g->f, "</tr>");
        for (c = 0; c < n; c++) {
            fprintf(g->f, "<tr><td>%s</td>", names[c]);
            for (l = 0; l < 3; l++) {
                char name[64];
                snprintf(name, sizeof name, "%s_%s", values[k][0], levels[l]);
                write_mean(g, v, condition_values(g->all, x, names[c], name, v));
            }
            fprintf(g->f, "</tr>");
        }
        fprintf(g->f, "</table>\n");
    }
}

static inline void write_applications(page *g, const experiment *x)
{
    static const char *const groups[][2] = {
        {"recontextualisation", "classifier: the place"}, {"art", "classifier: the style"},
        {"views", "classifier: the view"},       {"accessories", "classifier: the accessory"},
        {"colours", "classifier: the colour"},
        {"hybrids", "CLIP's choice of three captions; classes with a head only"},
        {"expressions", "CLIP's choice of four captions; animals only"},
        {"mean", "of those that a subject has, without the first"}};
    static const char *const values[] = {"success_", "success_original_", "likeness_",
                                         "likeness_original_"};
    double v[STAT_MAX];
    size_t k, j;
    fprintf(g->f,
            "<table><tr><th>application</th><th>success by</th><th class=\"n\">success</th>"
            "<th class=\"n\">original model, \"a [class] &hellip;\"</th><th class=\"n\">likeness "
            "to the photos (DINO)</th><th class=\"n\">original's</th></tr>");
    for (k = 0; k < 8; k++) {
        fprintf(g->f, "<tr><td>%s</td><td>%s</td>", groups[k][0], groups[k][1]);
        for (j = 0; j < 4; j++) {
            char name[64];
            snprintf(name, sizeof name, "%s%s", values[j], groups[k][0]);
            write_mean(g, v, condition_values(g->all, x, "dreambooth", name, v));
        }
        fprintf(g->f, "</tr>");
    }
    fprintf(g->f, "</table>\n");
}

/* The cell of "prior/with", seed 0, where a value is highest (sign 1) or lowest (-1), unless it is
   `fine` even there. */
static inline void write_extreme(page *g, const char *value, double sign, double fine,
                                 const char *title)
{
    const record *worst = NULL;
    size_t k;
    char text[192];
    for (k = 0; k < g->all->n; k++) {
        const record *r = &g->all->item[k];
        double v = record_get(r, value);
        if (!strncmp(r->cell, "prior/with/", 11) && !strcmp(r->cell + strlen(r->cell) - 2, "/0") &&
            sign * v > sign * (worst ? record_get(worst, value) : fine))
            worst = r;
    }
    if (!worst) return;
    snprintf(text, sizeof text, "%s: %s %.3f", title, value, record_get(worst, value));
    write_cell_strip(g, worst->cell, text);
}

static inline void write_failures(page *g)
{
    fprintf(g->f,
            "<h3>Failure modes (figure 9): the worst cells with prior preservation, seed 0; one "
            "picture of each prompt, which need not be the failing one</h3>");
    write_extreme(g, "place_right", -1, 1, "the context is not always drawn");
    write_extreme(g, "place_of_photos", 1, 0, "the photos' place comes along");
    write_extreme(g, "overfit", 1, 0, "most overfitted to the photos");
    write_extreme(g, "fidelity", -1, 1, "the subject is least itself");
}

/* ---- the page -------------------------------------------------------------------------------- */

static inline void write_experiment(page *g, const experiment *x, const outcome *o)
{
    char plot[16][40];
    size_t e, k, n, there = 0, diverged = 0, own = strlen(x->name);
    for (k = 0; k < g->all->n; k++)
        if (!strncmp(g->all->item[k].cell, x->name, own) && g->all->item[k].cell[own] == '/')
            there++, diverged += record_get(&g->all->item[k], "diverged") == 1;
    fprintf(g->f, "<h2 id=\"%s\">%s</h2><p>", x->name, x->name);
    html_text(g->f, x->question);
    fprintf(g->f, "<br><span class=\"dim\">Paper: ");
    html_text(g->f, x->paper);
    fprintf(g->f, ". %zu cell%s: <code>build/reproduce run --experiment %s</code></span></p>\n",
            there, there == 1 ? "" : "s", x->name);
    if (!there) {
        fprintf(g->f, "<p>Not run.</p>\n");
        return;
    }
    if (diverged)
        fprintf(g->f,
                "<p><b>%zu of these trainings diverged</b>: they have no values from there on, and "
                "no pair counts that one of them would belong to.</p>\n",
                diverged);
    for (e = 0; e < EXPERIMENTS && strcmp(views[e].experiment, x->name); e++) {}
    write_claims(g, o, x->name);
    write_table(g, x, views[e].values);
    if (!strcmp(x->name, "map")) write_map(g, x);
    if (!strcmp(x->name, "prior")) write_leaks(g, x);
    if (!strcmp(x->name, "sr")) write_sr(g, x);
    if (!strcmp(x->name, "applications")) write_applications(g, x);
    n = split_words(views[e].plots, plot, 16);
    for (k = 0; k < n; k++) write_plot(g, x, plot[k]);
    write_pictures(g, x, !strcmp(x->name, "prior") ? 4 : !strcmp(x->name, "applications") ? 3
                           : !strcmp(x->name, "sr") ? 2
                                                    : 1);
    if (!strcmp(x->name, "applications")) write_failures(g);
}

/* Every cell: its figures, seed, time, command. */
static inline void write_cells(page *g)
{
    static const char *const values[] = {"dino", "fidelity", "clip_i", "clip_t", "div", "pres",
                                         "drift", "place_right"};
    size_t k, j;
    fprintf(g->f,
            "<h2>Every cell</h2><p>All values of a cell are in results.jsonl; its command "
            "computes them again, to the digit on the same maker's processor, "
            "instruction set and libm.</p><details>"
            "<summary>%zu cells</summary><div class=\"scroll\"><table><tr><th>command: "
            "<code>build/reproduce run --only &hellip;</code></th><th class=\"n\">seconds</th>",
            g->all->n);
    for (j = 0; j < 8; j++) fprintf(g->f, "<th class=\"n\">%s</th>", values[j]);
    fprintf(g->f, "<th>settings</th></tr>\n");
    for (k = 0; k < g->all->n; k++) {
        const record *r = &g->all->item[k];
        fprintf(g->f, "<tr><td><code>");
        html_text(g->f, r->cell);
        fprintf(g->f, "</code></td><td class=\"n\">");
        if (r->same_as[0]) fprintf(g->f, "as %s", r->same_as);
        else fprintf(g->f, "%.1f", r->seconds);
        fprintf(g->f, "</td>");
        for (j = 0; j < 8; j++) {
            fprintf(g->f, "<td class=\"n\">");
            html_number(g->f, record_get(r, values[j]), 0);
            fprintf(g->f, "</td>");
        }
        fprintf(g->f, "<td class=\"dim\">");
        html_text(g->f, r->settings);
        fprintf(g->f, "</td></tr>\n");
    }
    fprintf(g->f, "</table></div></details>\n");
}

static inline void write_page(page *g, const outcome *o)
{
    double seconds = 0;
    const record *last = &g->all->item[g->all->n - 1];
    char machines[512] = "";
    size_t k, e;
    for (k = 0; k < g->all->n; k++) {
        const char *machine = g->all->item[k].machine;
        seconds += g->all->item[k].seconds;
        if (!strstr(machines, machine) && strlen(machines) + strlen(machine) + 8 < sizeof machines)
            strcat(strcat(machines, *machines ? " and " : ""), machine);
    }
    fprintf(g->f,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
            "content=\"width=device-width\"><title>DreamBooth, rerun</title><style>%s</style>"
            "\n<h1>DreamBooth's experiments, rerun on the shipped cascade</h1>",
            html_style);
    fprintf(g->f,
            "<p>%zu cells, %.1f hours of computing; %s; networks <code>%s</code>. A small world "
            "stands in for the paper's: its figures stand beside ours as directions, not as "
            "values to hit. Plan, hypotheses and margins: PAPER_NOTES.md.</p>",
            g->all->n, seconds / 3600, machines, last->networks);
    if (!g->inference)
        fprintf(g->f,
                "<p><b>A smoke test: a few steps, one subject. It shows that everything runs; "
                "no inference is drawn.</b></p>");
    fprintf(g->f, "<p>");
    for (e = 0; e < EXPERIMENTS; e++)
        fprintf(g->f, "%s<a href=\"#%s\">%s</a>", e ? " &middot; " : "", experiments[e].name,
                experiments[e].name);
    fprintf(g->f, "</p><h2>Hypotheses</h2>");
    write_claims(g, o, NULL);
    if (g->inference)
        fprintf(g->f,
                "<p class=\"dim\">Means over subjects (seeds averaged); paired by subject; exact "
                "signed-rank tests, two-sided; alike: two one-sided tests against the margin; "
                "Holm's correction over H1 to H8, and over the other claims of each "
                "experiment by themselves, in a row for each direction, what is not measured yet "
                "as p = 1; of a claim that is refuted, p is that of the opposite. 95 %% intervals "
                "are those of the median difference that the test does not reject. Where several "
                "conditions are compared, the weakest counts. &plusmn; is the standard deviation "
                "over subjects.</p>");
    for (e = 0; e < EXPERIMENTS; e++) write_experiment(g, &experiments[e], o);
    write_cells(g);
    fprintf(g->f, "</html>\n");
}

/* Of a condition every value that one of its cells has: [how many subjects, mean, deviation]. */
static inline void write_json_means(page *g, const experiment *x, const char *condition)
{
    static record every; /* the names alone count */
    char cell_name[128];
    size_t n = (size_t)snprintf(cell_name, sizeof cell_name, "%s/%s/", x->name, condition), k, i;
    every.n = 0;
    for (k = 0; k < g->all->n; k++) {
        const record *r = &g->all->item[k];
        for (i = 0; i < r->n && !strncmp(r->cell, cell_name, n); i++)
            record_set(&every, r->value[i].name, 0);
    }
    for (i = 0; i < every.n; i++) {
        double v[STAT_MAX];
        size_t m = condition_values(g->all, x, condition, every.value[i].name, v);
        fprintf(g->f, "%s\"%s\": [%zu, ", i ? ", " : "", every.value[i].name, m);
        json_number(g->f, stat_mean(v, m));
        fprintf(g->f, ", "), json_number(g->f, stat_sd(v, m)), fprintf(g->f, "]");
    }
}

static inline void write_json(page *g, const outcome *o)
{
    const char *names[CONDITIONS];
    size_t k, e, c, i;
    fprintf(g->f,
            "{\n \"inference\": %s,\n \"networks\": \"%s\",\n \"cells\": %zu,\n \"claims\": [",
            g->inference ? "true" : "false", g->all->item[g->all->n - 1].networks, g->all->n);
    for (k = 0; k < CLAIMS; k++) {
        fprintf(g->f,
                "%s\n  {\"id\": \"%s\", \"experiment\": \"%s\", \"value\": \"%s\", \"a\": \"%s\", "
                "\"relation\": \"%s\", \"b\": \"%s\", \"n\": %zu",
                k ? "," : "", claims[k].id, claims[k].experiment, claims[k].value, claims[k].a,
                relation_text(&claims[k]), claims[k].b, o[k].n);
        {
            const struct { const char *name; double value; int tests; } fields[] = {
                {"mean_a", o[k].a, 0}, {"mean_b", o[k].b, 0}, {"difference", o[k].difference, 0},
                {"low", o[k].low, 1}, {"high", o[k].high, 1}, {"p", o[k].p, 1},
                {"p_holm", o[k].p_holm, 1}, {"p_against_holm", o[k].against_holm, 1},
                {"power", o[k].power, 1}, {"detectable", o[k].detectable, 1}};
            for (i = 0; i < sizeof fields / sizeof *fields; i++) {
                if (fields[i].tests && !g->inference) continue;
                fprintf(g->f, ", \"%s\": ", fields[i].name);
                json_number(g->f, fields[i].value);
            }
        }
        if (g->inference) fprintf(g->f, ", \"verdict\": \"%s\"", o[k].verdict);
        fprintf(g->f, "}");
    }
    fprintf(g->f, "],\n \"means\": {");
    for (e = 0; e < EXPERIMENTS; e++) {
        size_t n = condition_names(experiments[e].name, names);
        fprintf(g->f, "%s\n  \"%s\": {", e ? "," : "", experiments[e].name);
        for (c = 0; c < n; c++) {
            fprintf(g->f, "%s\n   \"%s\": {", c ? "," : "", names[c]);
            write_json_means(g, &experiments[e], names[c]);
            fprintf(g->f, "}");
        }
        fprintf(g->f, "}");
    }
    fprintf(g->f, "}\n}\n");
}

/* "f32": what was computed in. */
static inline const char *record_precision(const record *r)
{
    const char *comma = strrchr(r->machine, ',');
    return comma ? comma + 2 : "";
}
static inline int is_of_gpu(const record *r) { return !strncmp(r->machine, "cuda", 4); }

/* Whether two records can stand together: one set of weights, one precision, processors or GPUs. */
static inline int made_alike(const record *a, const record *b)
{
    return !strcmp(a->networks, b->networks) && !strcmp(record_precision(a), record_precision(b)) &&
        is_of_gpu(a) == is_of_gpu(b);
}

/* The record like which most are made. */
static inline const record *typical_record(const records *all)
{
    size_t k, i, most = 0, best = 0;
    for (k = 0; k < all->n; k++) {
        size_t n = 0;
        for (i = 0; i < all->n; i++) n += (size_t)made_alike(&all->item[k], &all->item[i]);
        if (n > most) most = n, best = k;
    }
    return &all->item[best];
}

/* Of all records those made like most, and whose settings are the plan's: the newest for each
   cell, in the plan's order. */
static inline records choose_records(const records *all, const scale *size, double guidance)
{
    records chosen;
    char planned[RECORD_TEXT];
    size_t n, k, i;
    cell *cells = list_cells(NULL, size, &n);
    const record *typical = typical_record(all);
    memset(&chosen, 0, sizeof chosen);
    for (k = 0; k < n; k++) {
        cell_settings(&cells[k], size, guidance, 0, planned, sizeof planned);
        for (i = all->n; i-- > 0;) {
            const record *r = &all->item[i];
            if (strcmp(r->cell, cells[k].name) || strcmp(r->settings, planned) ||
                !made_alike(r, typical))
                continue;
            records_add(&chosen, r);
            break;
        }
    }
    if (chosen.n < all->n)
        fprintf(stderr,
                "note: %zu records are older, or of other networks, settings, scale, precision or "
                "processor than most, and left out\n",
                all->n - chosen.n);
    free(cells);
    return chosen;
}

/* Writes FOLDER/report.html and results.json. */
static inline int write_report(const records *all, const scale *size, double guidance,
                               const char *folder)
{
    static const char *const files[] = {"report.html", "results.json"};
    records chosen = choose_records(all, size, guidance);
    outcome *o = (outcome *)malloc(CLAIMS * sizeof *o);
    char path[4096];
    int k, bad = 0;
    page g;
    memset(&g, 0, sizeof g);
    g.all = &chosen, g.folder = folder, g.inference = !strcmp(size->name, "full");
    g.most_steps = size->most_steps;
    if (!chosen.n) bad = fail("there are no records of the scale %s", size->name);
    if (!bad) judge(&chosen, o);
    for (k = 0; k < 2 && !bad; k++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[k]);
        g.f = begin_file(path);
        if (g.f && k == 0) write_page(&g, o);
        if (g.f && k == 1) write_json(&g, o);
        bad = end_file(g.f, path);
        if (!bad) printf("%s\n", path);
    }
    if (g.missing)
        printf("%zu rows of pictures are not in %s/cells\n", g.missing, folder);
    free(o);
    records_free(&chosen);
    return bad;
}

#endif
