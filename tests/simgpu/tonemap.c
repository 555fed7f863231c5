/* Tone mapping from HDR10 to SDR: BT.2020 with PQ to BT.709 as BT.1886 shows it, by Hable's curve on the brightest of
 * the three colours, as ffmpeg's tonemap filter has it. Both pictures are NV12 or P010, of one size. */
#include <math.h>
#include <stdlib.h>

#include "simgpu.h"

enum { STEPS = 1 << 12 };

struct tables {               /* of what a pixel would otherwise take powers for */
    float linear[STEPS + 1];  /* from PQ, 1 is 100 cd/m² */
    float display[STEPS + 1]; /* from light, to the power of 1 / 2.4 */
    float peak, white;        /* of the picture; what the curve makes of it */
};

static float hable(float light) {
    const float a = .15f, b = .5f, c = .1f, d = .2f, e = .02f, f = .3f;
    return (light * (light * a + b * c) + d * e) / (light * (light * a + b) + d * f) - e / f;
}

static struct tables *tables_new(float nits) {
    struct tables *tables = malloc(sizeof *tables);
    if (!tables) return NULL;
    for (int i = 0; i <= STEPS; i++) {
        double root = pow((double)i / STEPS, 1 / 78.84375);
        double ratio = (root > .8359375 ? root - .8359375 : 0) / (18.8515625 - 18.6875 * root);
        tables->linear[i] = (float)(100 * pow(ratio, 1 / .1593017578125));
        tables->display[i] = (float)pow((double)i / STEPS, 1 / 2.4);
    }
    tables->peak = nits / 100;
    tables->white = hable(tables->peak);
    return tables;
}

static float look_up(const float *table, float value) {
    float at = value < 0 ? 0 : value > 1 ? STEPS : value * STEPS;
    int index = (int)at < STEPS ? (int)at : STEPS - 1;
    return table[index] + (table[index + 1] - table[index]) * (at - (float)index);
}

/* Of one pixel: luma 0 to 1 and chroma -0.5 to 0.5, of BT.2020 with PQ in and of BT.709 out. */
static void map_pixel(const struct tables *tables, const float from[3], float to[3]) {
    float red = from[0] + 1.4746f * from[2], blue = from[0] + 1.8814f * from[1];
    float green = from[0] - .16455f * from[1] - .57135f * from[2];
    float r = look_up(tables->linear, red), g = look_up(tables->linear, green), b = look_up(tables->linear, blue);
    float light[3] = {1.6605f * r - .5876f * g - .0728f * b, -.1246f * r + 1.1329f * g - .0083f * b,
                      -.0182f * r - .1006f * g + 1.1187f * b};
    float brightest = light[0] > light[1] ? light[0] : light[1];
    if (light[2] > brightest) brightest = light[2];
    if (brightest > tables->peak) brightest = tables->peak;
    float factor = brightest > 1e-6f ? hable(brightest) / tables->white / brightest : 1;
    for (int i = 0; i < 3; i++) light[i] = look_up(tables->display, light[i] * factor);
    to[0] = .2126f * light[0] + .7152f * light[1] + .0722f * light[2];
    to[1] = (light[2] - to[0]) / 1.8556f;
    to[2] = (light[0] - to[0]) / 1.5748f;
}

static float get_sample(const struct picture *picture, int plane, int x, int y) { /* of 8 bits */
    const uint8_t *row = picture->data[plane] + (ptrdiff_t)y * picture->stride[plane];
    return picture->fourcc == VA_FOURCC_P010 ? (float)((const uint16_t *)(const void *)row)[x] / 256 : row[x];
}

static void put_sample(const struct picture *picture, int plane, int x, int y, float value) {
    uint8_t *row = picture->data[plane] + (ptrdiff_t)y * picture->stride[plane];
    value = value < 0 ? 0 : value > 255 ? 255 : value;
    if (picture->fourcc == VA_FOURCC_P010) ((uint16_t *)(void *)row)[x] = (uint16_t)((int)(value * 4 + .5f) << 6);
    else row[x] = (uint8_t)(value + .5f);
}

static void map_block(const struct tables *tables, const struct picture *from, const struct picture *to, int x, int y) {
    float chroma[2] = {0, 0}, count = 0;
    for (int dy = 0; dy < 2 && y + dy < to->height; dy++)
        for (int dx = 0; dx < 2 && x + dx < to->width; dx++) {
            float in[3] = {(get_sample(from, 0, x + dx, y + dy) - 16) / 219, 0, 0}, out[3];
            for (int i = 0; i < 2; i++) in[1 + i] = (get_sample(from, 1, x + i, y / 2) - 128) / 224;
            map_pixel(tables, in, out);
            put_sample(to, 0, x + dx, y + dy, out[0] * 219 + 16);
            chroma[0] += out[1], chroma[1] += out[2], count++;
        }
    for (int i = 0; i < 2; i++) put_sample(to, 1, x + i, y / 2, chroma[i] / count * 224 + 128);
}

bool tone_map(const struct picture *from, const struct picture *to, float nits) {
    struct tables *tables = tables_new(nits);
    if (!tables) return false;
    for (int y = 0; y < to->height; y += 2)
        for (int x = 0; x < to->width; x += 2) map_block(tables, from, to, x, y);
    free(tables);
    return true;
}
