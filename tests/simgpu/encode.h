/* What a picture's encoder is asked for, whoever asks: VA-API's buffers or oneVPL's parameters. */
#ifndef SIMGPU_ENCODE_H
#define SIMGPU_ENCODE_H

#include "headers.h"

struct settings { /* whatever makes a new encoder necessary */
    struct facts facts;
    int width, height, level, frame_num, frame_den, qp;
    int64_t bits, target, buffer, fullness; /* bits a second at most and on average; bits */
    int quality;
};

enum coding { CODE_INTER, CODE_INTRA, CODE_IDR };

struct settings *encoder_settings(struct encoder *encoder); /* heeded with the first picture and with each IDR */
/* The parameter sets that the first IDR will have, with start codes; gives their size, 0 if they cannot be made. */
size_t encoder_parameter_sets(const struct encoder *encoder, uint8_t *to, size_t room);
/* Codes one picture into `coded`. */
VAStatus encoder_picture(struct encoder *encoder, const struct picture *input, enum coding coding, enum fate fate,
                         struct buffer *coded);

#endif
