/* Whole networks against diffusers and transformers: outputs and the gradient of every parameter,
   for the configurations that golden/make_networks.py computed. */
#define _POSIX_C_SOURCE 200809L
#include "dreambooth.h"

#include "test.h"
#include "networks.h"

int main(int argc, char **argv)
{
    static const char *const unets[] = {"if1_a", "if1_b", "if1_c", "if2_a", "if2_b", "if2_c", "if3_a"},
                             *const t5s[] = {"t5_a", "t5_b", "t5_c"};
    size_t k;
    db_config config = db_config_default();
    db_ctx *ctx;
    (void)argc;
    let_threads_sleep(argv);
    if (db_create(&ctx, &config) != DB_OK) return 1;
    for (k = 0; k < sizeof unets / sizeof *unets; k++) check_unet(ctx, unets[k], 1e-4, 1e-3);
    for (k = 0; k < sizeof t5s / sizeof *t5s; k++) check_text_encoder(ctx, t5s[k]);
    db_destroy(ctx);
    return test_summary();
}
