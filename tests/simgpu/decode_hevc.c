/* HEVC: the parameter sets of a picture, rebuilt, and its slice headers, written anew.
 *
 * VA-API does not tell the sequence's reference picture sets nor how slice headers refer to them, but it tells the
 * meaning of every field. So the sets written here allow a slice to say all by itself, and every slice does. */
#include <stdlib.h>
#include <string.h>

#include "decode.h"

enum { IDR_W_RADL = 19, IDR_N_LP = 20, SLICE_B = 0, SLICE_P = 1, REFERENCES = 15 };

struct references { /* what the current picture may refer to, in the order of its reference picture set */
    int negative[REFERENCES], positive[REFERENCES], long_term[REFERENCES]; /* indices into ReferenceFrames */
    int negatives, positives, long_terms;
    int before[REFERENCES], after[REFERENCES], lasting[REFERENCES]; /* those of them it does refer to */
    int befores, afters, lastings;
};

static unsigned bits_for(uint32_t count) { /* Ceil(Log2(count)) */
    unsigned bits = 0;
    while (bits < 31 && ((uint32_t)1 << bits) < count) bits++;
    return bits;
}

static void put_level(struct bits *bits, bool ten_bit) { /* profile, tier and level */
    put_bits(bits, 8, ten_bit ? 2 : 1);
    put_bits(bits, 32, ten_bit ? 0x20000000 : 0x60000000);
    put_bits(bits, 4, 9); /* progressive, frames only */
    put_bits(bits, 32, 0);
    put_bits(bits, 12, 0);
    put_bits(bits, 8, 186);
}

static size_t write_video(const VAPictureParameterBufferHEVC *picture, uint8_t *to) {
    uint8_t data[64];
    struct bits bits = {data, sizeof data, 0};
    put_bits(&bits, 16, 0x4001);
    put_bits(&bits, 16, 0x0c01); /* set 0, base layer, one layer, one sub-layer, nested */
    put_bits(&bits, 16, 0xffff);
    put_level(&bits, picture->bit_depth_luma_minus8 > 0);
    put_bits(&bits, 1, 1);
    put_ue(&bits, picture->sps_max_dec_pic_buffering_minus1);
    put_ue(&bits, 0);
    put_ue(&bits, 0);
    put_bits(&bits, 6, 0);
    put_ue(&bits, 0);
    put_bits(&bits, 2, 0); /* no timing, no extension */
    return finish_nal(&bits, to);
}

static void put_list(struct bits *bits, const uint8_t *list, int size, int dc) {
    int side = size == 16 ? 4 : 8, last = 8;
    put_bits(bits, 1, 1);
    if (dc >= 0) put_se(bits, dc - 8), last = dc;
    for (int diagonal = 0; diagonal < 2 * side - 1; diagonal++) /* from below left to above right */
        for (int x = 0; x < side; x++) {
            int y = diagonal - x;
            if (y < 0 || y >= side) continue;
            int step = list[y * side + x] - last;
            put_se(bits, step > 127 ? step - 256 : step < -128 ? step + 256 : step);
            last = list[y * side + x];
        }
}

static void put_lists(struct bits *bits, const VAIQMatrixBufferHEVC *matrix) {
    for (int i = 0; i < 6; i++) put_list(bits, matrix->ScalingList4x4[i], 16, -1);
    for (int i = 0; i < 6; i++) put_list(bits, matrix->ScalingList8x8[i], 64, -1);
    for (int i = 0; i < 6; i++) put_list(bits, matrix->ScalingList16x16[i], 64, matrix->ScalingListDC16x16[i]);
    for (int i = 0; i < 2; i++) put_list(bits, matrix->ScalingList32x32[i], 64, matrix->ScalingListDC32x32[i]);
}

static size_t write_sequence(const struct decoder *decoder, uint8_t *to) {
    const VAPictureParameterBufferHEVC *picture = &decoder->picture.hevc;
    uint8_t data[6144];
    struct bits bits = {data, sizeof data, 0};
    put_bits(&bits, 16, 0x4201);
    put_bits(&bits, 8, 1);
    put_level(&bits, picture->bit_depth_luma_minus8 > 0);
    put_ue(&bits, 0);
    put_ue(&bits, picture->pic_fields.bits.chroma_format_idc);
    put_ue(&bits, picture->pic_width_in_luma_samples);
    put_ue(&bits, picture->pic_height_in_luma_samples);
    put_bits(&bits, 1, 0);
    put_ue(&bits, picture->bit_depth_luma_minus8);
    put_ue(&bits, picture->bit_depth_chroma_minus8);
    put_ue(&bits, picture->log2_max_pic_order_cnt_lsb_minus4);
    put_bits(&bits, 1, 1);
    put_ue(&bits, picture->sps_max_dec_pic_buffering_minus1);
    put_ue(&bits, 0);
    put_ue(&bits, 0);
    put_ue(&bits, picture->log2_min_luma_coding_block_size_minus3);
    put_ue(&bits, picture->log2_diff_max_min_luma_coding_block_size);
    put_ue(&bits, picture->log2_min_transform_block_size_minus2);
    put_ue(&bits, picture->log2_diff_max_min_transform_block_size);
    put_ue(&bits, picture->max_transform_hierarchy_depth_inter);
    put_ue(&bits, picture->max_transform_hierarchy_depth_intra);
    put_bits(&bits, 1, picture->pic_fields.bits.scaling_list_enabled_flag);
    if (picture->pic_fields.bits.scaling_list_enabled_flag) {
        put_bits(&bits, 1, decoder->has_matrix);
        if (decoder->has_matrix) put_lists(&bits, &decoder->matrix.hevc);
    }
    put_bits(&bits, 1, picture->pic_fields.bits.amp_enabled_flag);
    put_bits(&bits, 1, picture->slice_parsing_fields.bits.sample_adaptive_offset_enabled_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.pcm_enabled_flag);
    if (picture->pic_fields.bits.pcm_enabled_flag) {
        put_bits(&bits, 4, picture->pcm_sample_bit_depth_luma_minus1);
        put_bits(&bits, 4, picture->pcm_sample_bit_depth_chroma_minus1);
        put_ue(&bits, picture->log2_min_pcm_luma_coding_block_size_minus3);
        put_ue(&bits, picture->log2_diff_max_min_pcm_luma_coding_block_size);
        put_bits(&bits, 1, picture->pic_fields.bits.pcm_loop_filter_disabled_flag);
    }
    put_ue(&bits, 0); /* no reference picture sets: the slices have theirs */
    put_bits(&bits, 1, picture->slice_parsing_fields.bits.long_term_ref_pics_present_flag);
    if (picture->slice_parsing_fields.bits.long_term_ref_pics_present_flag) put_ue(&bits, 0);
    put_bits(&bits, 1, picture->slice_parsing_fields.bits.sps_temporal_mvp_enabled_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.strong_intra_smoothing_enabled_flag);
    put_bits(&bits, 2, 0);
    return finish_nal(&bits, to);
}

static size_t write_picture(const VAPictureParameterBufferHEVC *picture, uint8_t *to) {
    uint8_t data[512];
    struct bits bits = {data, sizeof data, 0};
    bool tiles = picture->pic_fields.bits.tiles_enabled_flag;
    put_bits(&bits, 16, 0x4401);
    put_ue(&bits, 0);
    put_ue(&bits, 0);
    put_bits(&bits, 1, picture->slice_parsing_fields.bits.dependent_slice_segments_enabled_flag);
    put_bits(&bits, 4, 0); /* no output flag, no extra bits */
    put_bits(&bits, 1, picture->pic_fields.bits.sign_data_hiding_enabled_flag);
    put_bits(&bits, 1, 1); /* slices choose their CABAC tables */
    put_ue(&bits, 0);
    put_ue(&bits, 0);
    put_se(&bits, picture->init_qp_minus26);
    put_bits(&bits, 1, picture->pic_fields.bits.constrained_intra_pred_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.transform_skip_enabled_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.cu_qp_delta_enabled_flag);
    if (picture->pic_fields.bits.cu_qp_delta_enabled_flag) put_ue(&bits, picture->diff_cu_qp_delta_depth);
    put_se(&bits, picture->pps_cb_qp_offset);
    put_se(&bits, picture->pps_cr_qp_offset);
    put_bits(&bits, 1, 1); /* slices have chroma offsets */
    put_bits(&bits, 1, picture->pic_fields.bits.weighted_pred_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.weighted_bipred_flag);
    put_bits(&bits, 1, picture->pic_fields.bits.transquant_bypass_enabled_flag);
    put_bits(&bits, 1, tiles);
    put_bits(&bits, 1, picture->pic_fields.bits.entropy_coding_sync_enabled_flag);
    if (tiles) {
        put_ue(&bits, picture->num_tile_columns_minus1);
        put_ue(&bits, picture->num_tile_rows_minus1);
        put_bits(&bits, 1, 0);
        for (int i = 0; i < picture->num_tile_columns_minus1 && i < 19; i++)
            put_ue(&bits, picture->column_width_minus1[i]);
        for (int i = 0; i < picture->num_tile_rows_minus1 && i < 21; i++) put_ue(&bits, picture->row_height_minus1[i]);
        put_bits(&bits, 1, picture->pic_fields.bits.loop_filter_across_tiles_enabled_flag);
    }
    put_bits(&bits, 1, picture->pic_fields.bits.pps_loop_filter_across_slices_enabled_flag);
    put_bits(&bits, 3, 6); /* slices override the deblocking filter, which is on */
    put_se(&bits, 0);
    put_se(&bits, 0);
    put_bits(&bits, 2, 1); /* no scaling lists here; slices order their reference lists */
    put_ue(&bits, picture->log2_parallel_merge_level_minus2);
    put_bits(&bits, 2, 0);
    return finish_nal(&bits, to);
}

/* ---- references ---- */

static int distance(const VAPictureParameterBufferHEVC *picture, int index) {
    return picture->ReferenceFrames[index].pic_order_cnt - picture->CurrPic.pic_order_cnt;
}

static void insert(const VAPictureParameterBufferHEVC *picture, int *list, int *count, int index) { /* nearest first */
    int at = (*count)++;
    while (at > 0 && abs(distance(picture, list[at - 1])) > abs(distance(picture, index)))
        list[at] = list[at - 1], at--;
    list[at] = index;
}

static bool is_current(const VAPictureParameterBufferHEVC *picture, int index) {
    return picture->ReferenceFrames[index].flags &
           (VA_PICTURE_HEVC_RPS_ST_CURR_BEFORE | VA_PICTURE_HEVC_RPS_ST_CURR_AFTER | VA_PICTURE_HEVC_RPS_LT_CURR);
}

static int pick(const VAPictureParameterBufferHEVC *picture, const int *from, int count, int *to) {
    int picked = 0;
    for (int i = 0; i < count; i++)
        if (is_current(picture, from[i])) to[picked++] = from[i];
    return picked;
}

static struct references references_of(const VAPictureParameterBufferHEVC *picture) {
    struct references all = {0};
    for (int i = 0; i < REFERENCES; i++) {
        const VAPictureHEVC *frame = &picture->ReferenceFrames[i];
        if (frame->picture_id == VA_INVALID_ID || frame->flags & VA_PICTURE_HEVC_INVALID) continue;
        if (frame->flags & (VA_PICTURE_HEVC_LONG_TERM_REFERENCE | VA_PICTURE_HEVC_RPS_LT_CURR))
            all.long_term[all.long_terms++] = i;
        else if (distance(picture, i) < 0) insert(picture, all.negative, &all.negatives, i);
        else if (distance(picture, i) > 0) insert(picture, all.positive, &all.positives, i);
    }
    all.befores = pick(picture, all.negative, all.negatives, all.before);
    all.afters = pick(picture, all.positive, all.positives, all.after);
    all.lastings = pick(picture, all.long_term, all.long_terms, all.lasting);
    return all;
}

static void put_reference_set(struct bits *bits, const VAPictureParameterBufferHEVC *picture,
                              const struct references *all) {
    unsigned size = picture->log2_max_pic_order_cnt_lsb_minus4 + 4u;
    put_bits(bits, 1, 0); /* not one of the sequence's */
    put_ue(bits, (uint32_t)all->negatives);
    put_ue(bits, (uint32_t)all->positives);
    for (int side = 0; side < 2; side++) {
        const int *list = side ? all->positive : all->negative;
        int count = side ? all->positives : all->negatives, last = 0;
        for (int i = 0; i < count; i++) {
            int away = abs(distance(picture, list[i]));
            put_ue(bits, (uint32_t)(away - last - 1));
            put_bits(bits, 1, is_current(picture, list[i]));
            last = away;
        }
    }
    if (!picture->slice_parsing_fields.bits.long_term_ref_pics_present_flag) return;
    put_ue(bits, (uint32_t)all->long_terms);
    for (int i = 0; i < all->long_terms; i++) {
        put_bits(bits, size, (uint32_t)picture->ReferenceFrames[all->long_term[i]].pic_order_cnt & ((1u << size) - 1));
        put_bits(bits, 1, is_current(picture, all->long_term[i]));
        put_bits(bits, 1, 0);
    }
}

static int find(const int *list, int count, int index) {
    for (int i = 0; i < count; i++)
        if (list[i] == index) return i;
    return -1;
}

/* Where a picture is in the list that reference lists are ordered from. */
static uint32_t entry_of(const struct references *all, int list, int index) {
    const int *first = list ? all->after : all->before, *second = list ? all->before : all->after;
    int firsts = list ? all->afters : all->befores, seconds = list ? all->befores : all->afters;
    int at = find(first, firsts, index);
    if (at >= 0) return (uint32_t)at;
    if ((at = find(second, seconds, index)) >= 0) return (uint32_t)(firsts + at);
    if ((at = find(all->lasting, all->lastings, index)) >= 0) return (uint32_t)(firsts + seconds + at);
    return 0;
}

static void put_weights(struct bits *bits, const VASliceParameterBufferHEVC *slice, int list, int count) {
    const int8_t *luma = list ? slice->delta_luma_weight_l1 : slice->delta_luma_weight_l0;
    const int8_t *luma_offset = list ? slice->luma_offset_l1 : slice->luma_offset_l0;
    const int8_t (*chroma)[2] = list ? slice->delta_chroma_weight_l1 : slice->delta_chroma_weight_l0;
    const int8_t (*offset)[2] = list ? slice->ChromaOffsetL1 : slice->ChromaOffsetL0;
    for (int i = 0; i < count; i++) put_bits(bits, 1, luma[i] || luma_offset[i]);
    for (int i = 0; i < count; i++) put_bits(bits, 1, chroma[i][0] || chroma[i][1] || offset[i][0] || offset[i][1]);
    int denominator = slice->luma_log2_weight_denom + slice->delta_chroma_log2_weight_denom;
    for (int i = 0; i < count; i++) {
        if (luma[i] || luma_offset[i]) put_se(bits, luma[i]), put_se(bits, luma_offset[i]);
        if (!(chroma[i][0] || chroma[i][1] || offset[i][0] || offset[i][1])) continue;
        for (int j = 0; j < 2; j++) {
            int weight = (1 << denominator) + chroma[i][j];
            put_se(bits, chroma[i][j]);
            put_se(bits, offset[i][j] - (128 - ((128 * weight) >> denominator)));
        }
    }
}

/* ---- slices ---- */

static void put_inter(struct bits *bits, const VAPictureParameterBufferHEVC *picture,
                      const VASliceParameterBufferHEVC *slice, const struct references *all) {
    bool b = slice->LongSliceFlags.fields.slice_type == SLICE_B;
    int counts[2] = {slice->num_ref_idx_l0_active_minus1 + 1, b ? slice->num_ref_idx_l1_active_minus1 + 1 : 0};
    int total = all->befores + all->afters + all->lastings;
    for (int i = 0; i < 2; i++)
        if (counts[i] > REFERENCES) counts[i] = REFERENCES;
    put_bits(bits, 1, 1);
    put_ue(bits, (uint32_t)counts[0] - 1);
    if (b) put_ue(bits, (uint32_t)counts[1] - 1);
    for (int list = 0; total > 1 && list < (b ? 2 : 1); list++) {
        put_bits(bits, 1, 1);
        for (int i = 0; i < counts[list]; i++)
            put_bits(bits, bits_for((uint32_t)total), entry_of(all, list, slice->RefPicList[list][i]));
    }
    if (b) put_bits(bits, 1, slice->LongSliceFlags.fields.mvd_l1_zero_flag);
    put_bits(bits, 1, slice->LongSliceFlags.fields.cabac_init_flag);
    if (slice->LongSliceFlags.fields.slice_temporal_mvp_enabled_flag) {
        bool from_0 = !b || slice->LongSliceFlags.fields.collocated_from_l0_flag;
        if (b) put_bits(bits, 1, from_0);
        if (counts[from_0 ? 0 : 1] > 1) put_ue(bits, slice->collocated_ref_idx);
    }
    if (b ? picture->pic_fields.bits.weighted_bipred_flag : picture->pic_fields.bits.weighted_pred_flag) {
        put_ue(bits, slice->luma_log2_weight_denom);
        put_se(bits, slice->delta_chroma_log2_weight_denom);
        put_weights(bits, slice, 0, counts[0]);
        if (b) put_weights(bits, slice, 1, counts[1]);
    }
    put_ue(bits, slice->five_minus_max_num_merge_cand);
}

static void put_header(struct bits *bits, const VAPictureParameterBufferHEVC *picture,
                       const VASliceParameterBufferHEVC *slice, const struct references *all, int type) {
    uint32_t block =
        1u << (picture->log2_min_luma_coding_block_size_minus3 + 3 + picture->log2_diff_max_min_luma_coding_block_size);
    uint32_t blocks = (picture->pic_width_in_luma_samples + block - 1) / block *
                      ((picture->pic_height_in_luma_samples + block - 1) / block);
    bool dependent = slice->LongSliceFlags.fields.dependent_slice_segment_flag;
    put_bits(bits, 1, slice->slice_segment_address == 0);
    if (type >= 16 && type <= 23) put_bits(bits, 1, 0);
    put_ue(bits, 0);
    if (slice->slice_segment_address) {
        if (picture->slice_parsing_fields.bits.dependent_slice_segments_enabled_flag) put_bits(bits, 1, dependent);
        put_bits(bits, bits_for(blocks), slice->slice_segment_address);
    }
    if (!dependent) {
        bool luma = slice->LongSliceFlags.fields.slice_sao_luma_flag,
             chroma = slice->LongSliceFlags.fields.slice_sao_chroma_flag;
        bool unfiltered = slice->LongSliceFlags.fields.slice_deblocking_filter_disabled_flag;
        put_ue(bits, slice->LongSliceFlags.fields.slice_type);
        if (type != IDR_W_RADL && type != IDR_N_LP) {
            unsigned size = picture->log2_max_pic_order_cnt_lsb_minus4 + 4u;
            put_bits(bits, size, (uint32_t)picture->CurrPic.pic_order_cnt & ((1u << size) - 1));
            put_reference_set(bits, picture, all);
            if (picture->slice_parsing_fields.bits.sps_temporal_mvp_enabled_flag)
                put_bits(bits, 1, slice->LongSliceFlags.fields.slice_temporal_mvp_enabled_flag);
        }
        if (picture->slice_parsing_fields.bits.sample_adaptive_offset_enabled_flag) {
            put_bits(bits, 1, luma);
            if (picture->pic_fields.bits.chroma_format_idc) put_bits(bits, 1, chroma);
        }
        if (slice->LongSliceFlags.fields.slice_type <= SLICE_P) put_inter(bits, picture, slice, all);
        put_se(bits, slice->slice_qp_delta);
        put_se(bits, slice->slice_cb_qp_offset);
        put_se(bits, slice->slice_cr_qp_offset);
        put_bits(bits, 1, 1);
        put_bits(bits, 1, unfiltered);
        if (!unfiltered) put_se(bits, slice->slice_beta_offset_div2), put_se(bits, slice->slice_tc_offset_div2);
        if (picture->pic_fields.bits.pps_loop_filter_across_slices_enabled_flag && (luma || chroma || !unfiltered))
            put_bits(bits, 1, slice->LongSliceFlags.fields.slice_loop_filter_across_slices_enabled_flag);
    }
    if (picture->pic_fields.bits.tiles_enabled_flag || picture->pic_fields.bits.entropy_coding_sync_enabled_flag)
        put_ue(bits, 0); /* entry points serve threads only */
    put_bits(bits, 1, 1);
    while (bits->position % 8) put_bits(bits, 1, 0);
}

static size_t write_slice(const VAPictureParameterBufferHEVC *picture, const struct slice *slice, const uint8_t *nal,
                          const struct references *all, uint8_t *to) {
    enum { HEADER = 1024 };
    uint8_t *data = malloc(slice->size + HEADER), *plain = malloc(slice->size + 1);
    size_t written = 0;
    if (data && plain) {
        size_t size = unescape(nal, slice->size, plain, slice->size), start = slice->hevc.slice_data_byte_offset;
        struct bits bits = {data, HEADER, 0};
        put_bits(&bits, 8, plain[0]);
        put_bits(&bits, 8, plain[1]);
        put_header(&bits, picture, &slice->hevc, all, plain[0] >> 1 & 63);
        if (start < size && bits.position / 8 <= HEADER) {
            memcpy(data + bits.position / 8, plain + start, size - start);
            memcpy(to, (const uint8_t[]){0, 0, 0, 1}, 4);
            written = 4 + escape(data, bits.position / 8 + size - start, to + 4);
        }
    }
    free(data);
    free(plain);
    return written;
}

size_t hevc_assemble(const struct decoder *decoder, uint8_t *to, size_t room) {
    const VAPictureParameterBufferHEVC *picture = &decoder->picture.hevc;
    struct references all = references_of(picture);
    size_t size = write_video(picture, to);
    size += write_sequence(decoder, to + size);
    size += write_picture(picture, to + size);
    for (int i = 0; i < decoder->slice_count; i++) {
        const struct slice *slice = &decoder->slices[i];
        if (size + slice->size * 3 / 2 + 2048 > room) return 0;
        size += write_slice(picture, slice, decoder->stream + slice->offset, &all, to + size);
    }
    return size;
}
