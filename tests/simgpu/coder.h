/* What the encoders of all codecs share: the encoder of libavcodec that carries the settings out. */
#ifndef SIMGPU_CODER_H
#define SIMGPU_CODER_H

#include <libavcodec/avcodec.h>

#include "encode.h"

enum { HEADER_ROOM = 8192 };

struct encoder {
    enum codec codec;
    bool ten_bit;
    uint32_t rate_control;
    VAProfile profile;
    char preset[32];
    AVCodecContext *av;
    AVPacket *packet;
    AVFrame *planes; /* the picture as the encoder wants it */
    struct settings wanted, running;
    VABufferID coded;
    bool idr, intra, reorders;
    int order; /* in which the picture is shown */
    struct reorder reorder;
    int initial_qp;
    uint32_t header_type;
    bool header_escaped;
    uint8_t sequence[HEADER_ROOM], messages[HEADER_ROOM];
    size_t sequence_size, messages_size;
    int64_t count;
};

/* VP9 and AV1, whose streams are libvpx's and libaom's as they are. */
VAStatus frames_render(struct encoder *encoder, const struct buffer *buffer);
const char *frames_name(enum codec codec);
void frames_options(const struct encoder *encoder, AVCodecContext *av, const struct settings *wanted);

#endif
