/* embed - the same in C++: owners that free by themselves, a std::function for progress, exceptions
   for errors.

       c++ -std=c++17 -O2 -fopenmp -I. examples/embed.cpp -o embed_cpp -lm && ./embed_cpp

   Prints
       6 steps of "a green car in the city at night"
       a missing model is an exception                                                           */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

class Context {
public:
    explicit Context(std::function<bool(size_t, size_t)> keep_going)
        : keep_going_(std::move(keep_going))
    {
        db_config config = db_config_default();
        config.user = this;
        config.progress = [](void *self, const char *, size_t done, size_t total) -> int {
            return !static_cast<Context *>(self)->keep_going_(done, total);
        };
        if (db_create(&ctx_, &config) != DB_OK) throw std::runtime_error("no context");
    }
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;
    ~Context() { db_destroy(ctx_); }
    operator db_ctx *() const { return ctx_; }

    void check(db_result r) const
    {
        if (r == DB_OK) return;
        std::string what = db_last_error(ctx_);
        db_clear_error(ctx_);
        throw std::runtime_error(what);
    }

private:
    db_ctx *ctx_ = nullptr;
    std::function<bool(size_t, size_t)> keep_going_;
};

using Pipeline = std::unique_ptr<db_pipeline, void (*)(db_pipeline *)>;

static Pipeline load(const Context &ctx, const std::string &directory)
{
    db_pipeline *p = nullptr;
    ctx.check(db_pipeline_load(ctx, directory.c_str(), &p));
    return Pipeline(p, db_pipeline_free);
}

static std::vector<float> draw(const Context &ctx, db_pipeline *model, const std::string &prompt,
                               size_t steps)
{
    std::vector<float> pixels(64 * 64 * 3);
    const char *text = prompt.c_str();
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DDIM;
    c.num_inference_steps = steps;
    ctx.check(db_generate(model, &text, 1, nullptr, &c, 64, 64, pixels.data()));
    return pixels;
}

int main()
{
    try {
        size_t last = 0;
        Context ctx([&](size_t done, size_t) { last = done; return true; });
        Pipeline model = load(ctx, "examples/world/base");
        std::string prompt = "a green car in the city at night";
        std::vector<float> picture = draw(ctx, model.get(), prompt, 6);
        std::printf("%zu steps of \"%s\"\n", last, prompt.c_str());
        try {
            load(ctx, "examples/world/nothing");
        } catch (const std::runtime_error &e) {
            std::fprintf(stderr, "%s\n", e.what()); // which file, and what is wrong with it
            std::printf("a missing model is an exception\n");
        }
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
