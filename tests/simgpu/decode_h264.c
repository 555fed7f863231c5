/* H.264: the parameter sets of a picture, rebuilt. The slices stay as they are. */
#include <string.h>

#include "decode.h"

static const uint8_t zigzag4[16] = {0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11, 14, 15};
static const uint8_t zigzag8[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

struct header { /* what the start of a slice says */
    uint32_t picture_set;
    bool inter, bipredictive, overrides;
};

static struct header read_header(const VAPictureParameterBufferH264 *picture, const uint8_t *nal, size_t size) {
    uint8_t plain[96];
    struct bits bits = {plain, unescape(nal, size < 96 ? size : 96, plain, sizeof plain), 0};
    struct header header = {0};
    bool idr = (get_bits(&bits, 8) & 31) == 5, field = false;
    get_ue(&bits);
    uint32_t type = get_ue(&bits) % 5;
    header.picture_set = get_ue(&bits);
    header.bipredictive = type == 1;
    header.inter = type == 0 || type == 1 || type == 3;
    get_bits(&bits, picture->seq_fields.bits.log2_max_frame_num_minus4 + 4);
    if (!picture->seq_fields.bits.frame_mbs_only_flag && (field = get_bits(&bits, 1))) get_bits(&bits, 1);
    if (idr) get_ue(&bits);
    bool both_fields = picture->pic_fields.bits.pic_order_present_flag && !field;
    if (picture->seq_fields.bits.pic_order_cnt_type == 0) {
        get_bits(&bits, picture->seq_fields.bits.log2_max_pic_order_cnt_lsb_minus4 + 4);
        if (both_fields) get_se(&bits);
    } else if (picture->seq_fields.bits.pic_order_cnt_type == 1 &&
               !picture->seq_fields.bits.delta_pic_order_always_zero_flag) {
        get_se(&bits);
        if (both_fields) get_se(&bits);
    }
    if (picture->pic_fields.bits.redundant_pic_cnt_present_flag) get_ue(&bits);
    if (header.bipredictive) get_bits(&bits, 1);
    header.overrides = header.inter && get_bits(&bits, 1);
    return header;
}

static size_t write_sequence(const VAPictureParameterBufferH264 *picture, uint8_t *to) {
    uint8_t data[128];
    struct bits bits = {data, sizeof data, 0};
    uint32_t height = picture->picture_height_in_mbs_minus1 + 1u;
    bool frames = picture->seq_fields.bits.frame_mbs_only_flag;
    put_bits(&bits, 8, 0x67);
    put_bits(&bits, 24, 100 << 16 | 52); /* High, 5.2: its syntax can say all that the others can */
    put_ue(&bits, 0);
    put_ue(&bits, picture->seq_fields.bits.chroma_format_idc);
    put_ue(&bits, picture->bit_depth_luma_minus8);
    put_ue(&bits, picture->bit_depth_chroma_minus8);
    put_bits(&bits, 2, 0); /* no transform bypass; scaling lists are in the picture parameter set */
    put_ue(&bits, picture->seq_fields.bits.log2_max_frame_num_minus4);
    put_ue(&bits, picture->seq_fields.bits.pic_order_cnt_type);
    if (picture->seq_fields.bits.pic_order_cnt_type == 0) {
        put_ue(&bits, picture->seq_fields.bits.log2_max_pic_order_cnt_lsb_minus4);
    } else if (picture->seq_fields.bits.pic_order_cnt_type == 1) { /* VA-API does not tell the offsets */
        put_bits(&bits, 1, picture->seq_fields.bits.delta_pic_order_always_zero_flag);
        put_se(&bits, 0);
        put_se(&bits, 0);
        put_ue(&bits, 0);
    }
    put_ue(&bits, picture->num_ref_frames);
    put_bits(&bits, 1, picture->seq_fields.bits.gaps_in_frame_num_value_allowed_flag);
    put_ue(&bits, picture->picture_width_in_mbs_minus1);
    put_ue(&bits, (frames ? height : height / 2) - 1);
    put_bits(&bits, 1, frames);
    if (!frames) put_bits(&bits, 1, picture->seq_fields.bits.mb_adaptive_frame_field_flag);
    put_bits(&bits, 1, picture->seq_fields.bits.direct_8x8_inference_flag);
    put_bits(&bits, 2, 0); /* no cropping, no VUI */
    return finish_nal(&bits, to);
}

static void put_list(struct bits *bits, const uint8_t *list, const uint8_t *order, int size) {
    int last = 8;
    put_bits(bits, 1, 1);
    for (int i = 0; i < size; i++) {
        int step = list[order[i]] - last;
        put_se(bits, step > 127 ? step - 256 : step < -128 ? step + 256 : step);
        last = list[order[i]];
    }
}

static bool is_flat(const VAIQMatrixBufferH264 *matrix) {
    VAIQMatrixBufferH264 flat;
    memset(flat.ScalingList4x4, 16, sizeof flat.ScalingList4x4);
    memset(flat.ScalingList8x8, 16, sizeof flat.ScalingList8x8);
    return !memcmp(flat.ScalingList4x4, matrix->ScalingList4x4, sizeof flat.ScalingList4x4) &&
           !memcmp(flat.ScalingList8x8, matrix->ScalingList8x8, sizeof flat.ScalingList8x8);
}

static size_t write_picture(const struct decoder *decoder, uint32_t id, const uint32_t counts[2], uint8_t *to) {
    const VAPictureParameterBufferH264 *picture = &decoder->picture.h264;
    uint8_t data[1024];
    struct bits bits = {data, sizeof data, 0};
    bool transform8 = picture->pic_fields.bits.transform_8x8_mode_flag;
    bool lists = decoder->has_matrix && !is_flat(&decoder->matrix.h264);
    put_bits(&bits, 8, 0x68);
    put_ue(&bits, id);
    put_ue(&bits, 0);
    put_bits(&bits, 1, picture->pic_fields.bits.entropy_coding_mode_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.pic_order_present_flag);
    put_ue(&bits, 0);
    put_ue(&bits, counts[0]);
    put_ue(&bits, counts[1]);
    put_bits(&bits, 1, picture->pic_fields.bits.weighted_pred_flag);
    put_bits(&bits, 2, picture->pic_fields.bits.weighted_bipred_idc);
    put_se(&bits, picture->pic_init_qp_minus26);
    put_se(&bits, picture->pic_init_qs_minus26);
    put_se(&bits, picture->chroma_qp_index_offset);
    put_bits(&bits, 1, picture->pic_fields.bits.deblocking_filter_control_present_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.constrained_intra_pred_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.redundant_pic_cnt_present_flag);
    put_bits(&bits, 1, transform8);
    put_bits(&bits, 1, lists);
    if (lists) {
        for (int i = 0; i < 6; i++) put_list(&bits, decoder->matrix.h264.ScalingList4x4[i], zigzag4, 16);
        for (int i = 0; transform8 && i < 2; i++) put_list(&bits, decoder->matrix.h264.ScalingList8x8[i], zigzag8, 64);
    }
    put_se(&bits, picture->second_chroma_qp_index_offset);
    return finish_nal(&bits, to);
}

size_t h264_assemble(const struct decoder *decoder, uint8_t *to, size_t room) {
    const VAPictureParameterBufferH264 *picture = &decoder->picture.h264;
    uint64_t written = 0; /* the picture parameter sets; there are no more than a few in one picture */
    size_t size = write_sequence(picture, to);
    for (int i = 0; i < decoder->slice_count; i++) {
        const struct slice *slice = &decoder->slices[i];
        struct header header = read_header(picture, decoder->stream + slice->offset, slice->size);
        if (header.picture_set > 63 || written >> header.picture_set & 1) continue;
        written |= UINT64_C(1) << header.picture_set;
        /* A slice that does not give its own counts takes the set's, and VA-API tells only the slice's. */
        uint32_t counts[2] = {0, 0};
        bool known[2] = {false, false};
        for (int j = i; j < decoder->slice_count; j++) {
            const struct slice *other = &decoder->slices[j];
            struct header its = read_header(picture, decoder->stream + other->offset, other->size);
            if (its.picture_set != header.picture_set || !its.inter || its.overrides) continue;
            if (!known[0]) counts[0] = other->counts[0], known[0] = true;
            if (!known[1] && its.bipredictive) counts[1] = other->counts[1], known[1] = true;
        }
        size += write_picture(decoder, header.picture_set, counts, to + size);
        if (size + decoder->used + 4096 > room) return 0;
    }
    for (int i = 0; i < decoder->slice_count; i++) {
        const struct slice *slice = &decoder->slices[i];
        if (size + slice->size + 4 > room) return 0;
        memcpy(to + size, (const uint8_t[]){0, 0, 1}, 3);
        memcpy(to + size + 3, decoder->stream + slice->offset, slice->size);
        size += 3 + slice->size;
    }
    return size;
}
