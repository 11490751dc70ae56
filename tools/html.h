/* html.h - pieces of a self-contained page: text, pictures as data URIs, plots as inline SVG.

   Colours are fixed and so are all sizes: the same numbers give the same bytes.                  */
#ifndef HTML_H
#define HTML_H

static const char *const html_colors[] = {"#3566b0", "#c8553d", "#3a8f5c", "#8a5fa8",
                                          "#b8862b", "#4aa3a2", "#7a7a7a", "#d0699a"};

static const char html_style[] =
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1120px;margin:2em auto;"
    "padding:0 1em}"
    "h1{font-size:1.6em}h2{margin-top:2.2em;border-top:1px solid #ccc;padding-top:.8em}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
    "td,th{padding:.25em .7em;border-bottom:1px solid #e2e2e2;text-align:left;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "code{font-size:12px;background:#f4f4f2;padding:.1em .3em}"
    ".agrees{color:#1d7a3e;font-weight:600}.opposite,.differs{color:#b3261e;font-weight:600}"
    ".inconclusive{color:#8a6d00;font-weight:600}.dim,.incomplete{color:#777}"
    ".scroll{overflow-x:auto}"
    ".strip{display:flex;flex-wrap:wrap;gap:6px;margin:.2em 0 .8em}"
    ".strip figure{margin:0;width:96px}.strip figcaption{font-size:10.5px;line-height:1.25;"
    "color:#555}"
    ".tile{width:96px;height:96px;background-repeat:no-repeat;image-rendering:pixelated}"
    ".who{font-size:13px;margin-top:.6em}svg{margin:.4em 1em .4em 0;background:#fff}"
    "summary{cursor:pointer;margin:1em 0}";

static inline void html_text(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else if (*text == '"') fputs("&quot;", f);
        else fputc(*text, f);
}

/* Three digits behind the point; a dash for what is not a number. */
static inline void html_number(FILE *f, double x, int sign)
{
    if (x == x && fabs(x) < 1e12) fprintf(f, sign ? "%+.3f" : "%.3f", x);
    else fprintf(f, x == x ? "-" : "&ndash;");
}

static inline void html_base64(FILE *f, const uint8_t *data, size_t n)
{
    static const char letter[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t k;
    for (k = 0; k < n; k += 3) {
        uint32_t three = (uint32_t)data[k] << 16 | (k + 1 < n ? (uint32_t)data[k + 1] << 8 : 0) |
            (k + 2 < n ? (uint32_t)data[k + 2] : 0);
        fputc(letter[three >> 18], f), fputc(letter[three >> 12 & 63], f);
        fputc(k + 1 < n ? letter[three >> 6 & 63] : '=', f);
        fputc(k + 2 < n ? letter[three & 63] : '=', f);
    }
}

/* A PNG in which square pictures stand side by side, each with its label (separated by |). The data
   is in the page once; every tile shows its part. `id` is the page's number of this strip. */
static inline void html_strip(FILE *f, size_t id, const uint8_t *png, size_t bytes, size_t n,
                              const char *labels)
{
    size_t k;
    fprintf(f, "<style>.s%zu{background-image:url(data:image/png;base64,", id);
    html_base64(f, png, bytes);
    fprintf(f, ");background-size:%zupx 96px}</style><div class=\"strip\">", 96 * n);
    for (k = 0; k < n; k++) {
        char label[192];
        size_t length = strcspn(labels, "|");
        snprintf(label, sizeof label, "%.*s", (int)length, labels);
        labels += length + (labels[length] == '|');
        fprintf(f, "<figure><div class=\"tile s%zu\" style=\"background-position:-%zupx 0\"></div>"
                   "<figcaption>", id, 96 * k);
        html_text(f, label);
        fprintf(f, "</figcaption></figure>");
    }
    fprintf(f, "</div>\n");
}

/* ---- plots ----------------------------------------------------------------------------------- */

typedef struct html_axes {
    double x0, x1, y0, y1; /* of the data */
    double left, top, w, h; /* in pixels  */
} html_axes;

static inline double html_x(const html_axes *a, double x)
{
    return a->left + (x - a->x0) / (a->x1 - a->x0) * a->w;
}
static inline double html_y(const html_axes *a, double y)
{
    return a->top + (a->y1 - y) / (a->y1 - a->y0) * a->h;
}

/* Opens an SVG with title and y axis; y0, y1 hold the data's range and get room around it. */
static inline html_axes html_plot_begin(FILE *f, const char *title, double w, double h, double x0,
                                        double x1, double y0, double y1)
{
    html_axes a;
    double room = (y1 - y0) * .08, step, v;
    if (!(y1 > y0)) room = fabs(y0) * .1 + .01;
    a.x0 = x0, a.x1 = x1, a.y0 = y0 - room, a.y1 = y1 + room;
    a.left = 48, a.top = 26, a.w = w - 60, a.h = h - 74;
    fprintf(f, "<svg width=\"%.0f\" height=\"%.0f\" role=\"img\"><text x=\"%.0f\" y=\"15\" "
               "font-size=\"12\" font-weight=\"600\">", w, h, a.left);
    html_text(f, title);
    fprintf(f, "</text>");
    step = pow(10, floor(log10((a.y1 - a.y0) / 3)));
    if ((a.y1 - a.y0) / step > 12) step *= 5;
    else if ((a.y1 - a.y0) / step > 5) step *= 2;
    for (v = ceil(a.y0 / step) * step; v <= a.y1; v += step)
        fprintf(f, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e6e6e6\"/>"
                   "<text x=\"%.1f\" y=\"%.1f\" font-size=\"10\" text-anchor=\"end\" fill=\"#666\">"
                   "%g</text>",
                a.left, a.left + a.w, html_y(&a, v), html_y(&a, v), a.left - 5, html_y(&a, v) + 3.5,
                fabs(v) < step / 1000 ? 0 : round(v / step * 1000) * step / 1000);
    return a;
}

static inline void html_plot_end(FILE *f) { fprintf(f, "</svg>\n"); }

/* A label below the axis at x. */
static inline void html_tick(FILE *f, const html_axes *a, double x, const char *label)
{
    int slanted = strlen(label) > 7;
    double px = html_x(a, x), py = a->top + a->h + 14;
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"10\" fill=\"#444\" ", px, py);
    if (slanted) fprintf(f, "text-anchor=\"end\" transform=\"rotate(-28 %.1f %.1f)\">", px, py);
    else fprintf(f, "text-anchor=\"middle\">");
    html_text(f, label);
    fprintf(f, "</text>");
}

/* A line through the points that are numbers, with dots. */
static inline void html_line(FILE *f, const html_axes *a, const double *x, const double *y,
                             size_t n, const char *color, double width, double opacity)
{
    size_t k;
    int begun = 0;
    fprintf(f, "<g stroke=\"%s\" fill=\"%s\" opacity=\"%.2f\"><path fill=\"none\" "
               "stroke-width=\"%.1f\" d=\"", color, color, opacity, width);
    for (k = 0; k < n; k++)
        if (y[k] == y[k])
            fprintf(f, "%c%.1f %.1f", begun++ ? 'L' : 'M', html_x(a, x[k]), html_y(a, y[k]));
    fprintf(f, "\"/>");
    for (k = 0; k < n; k++)
        if (y[k] == y[k])
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>", html_x(a, x[k]),
                    html_y(a, y[k]), width + .6);
    fprintf(f, "</g>");
}

#endif
