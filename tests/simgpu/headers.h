/* What the application's packed headers say that VA-API's parameters do not. */
#ifndef SIMGPU_HEADERS_H
#define SIMGPU_HEADERS_H

#include "simgpu.h"

struct facts {
    int width, height; /* as shown, 0: not said */
    int sar_num, sar_den;
    int primaries, transfer, matrix; /* the codes of H.273, 2: not said */
    bool full_range;
};

void facts_default(struct facts *facts);
void facts_h264(struct facts *facts, const uint8_t *stream, size_t size);
void facts_av1(struct facts *facts, const uint8_t *stream, size_t size);
void facts_hevc(struct facts *facts, const uint8_t *stream, size_t size);

#endif
