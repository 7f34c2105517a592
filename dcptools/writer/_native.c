/* Copies stored values to their place in an output file, with all that is done to them on the way, in one call.

   This is an optional shortcut of writer/_engine.py. What it does not know, or finds unusual, it leaves to the Python
   code there, which is the measure of what is right. It reads the stored bytes a little at a time, so that they are
   still in a core's own cache when their CRC-32 is taken, when they are cast, and when they are written.

   It needs vector instructions of x86-64. For other machines it is not compiled (pyproject.toml: optional). */

#if !defined(__x86_64__) || !defined(__GNUC__) || defined(_WIN32)
#error "not for this machine: dcptools does without"
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES (128 << 10)
#define WRITE_BYTES (512 << 10)

#define WITH_AVX2 __attribute__((target("avx2,pclmul")))
#define WITH_VPCLMULQDQ __attribute__((target("avx2,pclmul,vpclmulqdq")))
#define WITH_AVX512 __attribute__((target("avx2,pclmul,vpclmulqdq,avx512f,avx512dq")))

/* CRC-32 as zip has it: the polynomial of IEEE 802.3 with its bits reversed, and all bits of the state inverted before
   and after, which is left to the caller.

   Long inputs are folded (V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
   Intel 2009): 128 bits of the input are replaced by a product that stands for them a fixed distance further on. When
   16 bytes are left, they have the CRC-32 of all that was folded into them. */

#define POLYNOMIAL 0xEDB88320u

static uint32_t crc_of_byte[256];

/* The two constants that move 128 bits on by a distance, for their first and their second 64 bits. */
typedef struct {
    uint64_t first, second;
} Distance;

static Distance by_16_bytes, by_32_bytes, by_64_bytes, by_128_bytes, by_256_bytes;

/* x to that power modulo the polynomial. Bit 0 of a product of two reversed numbers is not used, hence the shift. */
static uint64_t
power_of_x(unsigned exponent)
{
    uint32_t rest = 0x80000000u;
    while (exponent--)
        rest = rest >> 1 ^ (rest & 1 ? POLYNOMIAL : 0);
    return (uint64_t)rest << 1;
}

static Distance
distance(unsigned nbytes)
{
    return (Distance){power_of_x(8 * nbytes + 32), power_of_x(8 * nbytes - 32)};
}

static void
prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        crc_of_byte[byte] = crc;
    }
    by_16_bytes = distance(16);
    by_32_bytes = distance(32);
    by_64_bytes = distance(64);
    by_128_bytes = distance(128);
    by_256_bytes = distance(256);
}

static uint32_t
crc_bytewise(uint32_t crc, const uint8_t *data, size_t nbytes)
{
    while (nbytes--)
        crc = crc >> 8 ^ crc_of_byte[(crc ^ *data++) & 0xFF];
    return crc;
}

WITH_AVX2 static inline __m128i
load_distance(const Distance *by)
{
    return _mm_set_epi64x((long long)by->second, (long long)by->first);
}

WITH_AVX2 static inline __m128i
fold_16(__m128i state, __m128i by, __m128i next)
{
    __m128i first = _mm_clmulepi64_si128(state, by, 0x00), second = _mm_clmulepi64_si128(state, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(first, second), next);
}

WITH_AVX2 static uint32_t
crc_of_rest(__m128i state, const uint8_t *data, size_t nbytes)
{
    const __m128i by = load_distance(&by_16_bytes);
    for (; nbytes >= 16; data += 16, nbytes -= 16)
        state = fold_16(state, by, _mm_loadu_si128((const __m128i *)data));
    uint8_t last[16];
    _mm_storeu_si128((__m128i *)last, state);
    return crc_bytewise(crc_bytewise(0, last, 16), data, nbytes);
}

WITH_AVX2 static uint32_t
crc_avx2(uint32_t crc, const uint8_t *data, size_t nbytes)
{
    if (nbytes < 128)
        return crc_bytewise(crc, data, nbytes);
    __m128i state[8], by = load_distance(&by_128_bytes);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        state[i] = _mm_loadu_si128((const __m128i *)data + i);
    state[0] = _mm_xor_si128(state[0], _mm_cvtsi32_si128((int)crc));
    for (data += 128, nbytes -= 128; nbytes >= 128; data += 128, nbytes -= 128)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            state[i] = fold_16(state[i], by, _mm_loadu_si128((const __m128i *)data + i));
    by = load_distance(&by_16_bytes);
#pragma GCC unroll 8
    for (int i = 1; i < 8; i++)
        state[i] = fold_16(state[i - 1], by, state[i]);
    return crc_of_rest(state[7], data, nbytes);
}

WITH_VPCLMULQDQ static inline __m256i
fold_32(__m256i state, __m256i by, __m256i next)
{
    __m256i first = _mm256_clmulepi64_epi128(state, by, 0x00), second = _mm256_clmulepi64_epi128(state, by, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(first, second), next);
}

WITH_VPCLMULQDQ static uint32_t
crc_vpclmulqdq(uint32_t crc, const uint8_t *data, size_t nbytes)
{
    if (nbytes < 256)
        return crc_avx2(crc, data, nbytes);
    __m256i state[8], by = _mm256_broadcastsi128_si256(load_distance(&by_256_bytes));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        state[i] = _mm256_loadu_si256((const __m256i *)data + i);
    state[0] = _mm256_xor_si256(state[0], _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_cvtsi32_si128((int)crc), 0));
    for (data += 256, nbytes -= 256; nbytes >= 256; data += 256, nbytes -= 256)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            state[i] = fold_32(state[i], by, _mm256_loadu_si256((const __m256i *)data + i));
    by = _mm256_broadcastsi128_si256(load_distance(&by_32_bytes));
#pragma GCC unroll 8
    for (int i = 1; i < 8; i++)
        state[i] = fold_32(state[i - 1], by, state[i]);
    __m128i rest = _mm256_extracti128_si256(state[7], 0), last = _mm256_extracti128_si256(state[7], 1);
    return crc_of_rest(fold_16(rest, load_distance(&by_16_bytes), last), data, nbytes);
}

WITH_AVX512 static inline __m512i
fold_64(__m512i state, __m512i by, __m512i next)
{
    __m512i first = _mm512_clmulepi64_epi128(state, by, 0x00), second = _mm512_clmulepi64_epi128(state, by, 0x11);
    return _mm512_ternarylogic_epi64(first, second, next, 0x96); /* the exclusive or of the three */
}

WITH_AVX512 static uint32_t
crc_avx512(uint32_t crc, const uint8_t *data, size_t nbytes)
{
    if (nbytes < 256)
        return crc_avx2(crc, data, nbytes);
    __m512i state[4], by = _mm512_broadcast_i64x2(load_distance(&by_256_bytes));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        state[i] = _mm512_loadu_si512(data + 64 * i);
    state[0] = _mm512_xor_si512(state[0], _mm512_inserti64x2(_mm512_setzero_si512(), _mm_cvtsi32_si128((int)crc), 0));
    for (data += 256, nbytes -= 256; nbytes >= 256; data += 256, nbytes -= 256)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            state[i] = fold_64(state[i], by, _mm512_loadu_si512(data + 64 * i));
    by = _mm512_broadcast_i64x2(load_distance(&by_64_bytes));
#pragma GCC unroll 4
    for (int i = 1; i < 4; i++)
        state[i] = fold_64(state[i - 1], by, state[i]);
    const __m128i by_16 = load_distance(&by_16_bytes);
    __m128i rest = _mm512_extracti64x2_epi64(state[3], 0);
    rest = fold_16(rest, by_16, _mm512_extracti64x2_epi64(state[3], 1));
    rest = fold_16(rest, by_16, _mm512_extracti64x2_epi64(state[3], 2));
    rest = fold_16(rest, by_16, _mm512_extracti64x2_epi64(state[3], 3));
    return crc_of_rest(rest, data, nbytes);
}

/* float32 to bfloat16, rounded to the nearest and ties to even, as torch does it: the upper half of the bits, one more
   where the lower half is above a half, or at a half and the upper half is odd. All magnitudes from FIRST_UNUSUAL on
   are or become Inf or NaN. The functions say whether there was none of those; if there was, the output is void. */

#define MAGNITUDE 0x7FFFFFFFu
#define FIRST_UNUSUAL 0x7F7F8000u

static int
cast_one_by_one(const uint8_t *in, uint8_t *out, size_t count)
{
    for (; count--; in += 4, out += 2) {
        uint32_t bits;
        memcpy(&bits, in, 4);
        if ((bits & MAGNITUDE) >= FIRST_UNUSUAL)
            return 0;
        uint16_t rounded = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
        memcpy(out, &rounded, 2);
    }
    return 1;
}

WITH_AVX2 static inline __m256i
round_8(__m256i bits)
{
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
}

WITH_AVX2 static int
cast(const uint8_t *in, uint8_t *out, size_t count)
{
    const __m256i magnitude = _mm256_set1_epi32(MAGNITUDE);
    __m256i largest = _mm256_setzero_si256();
    for (; count >= 16; count -= 16, in += 64, out += 32) {
        const __m256i low = _mm256_loadu_si256((const __m256i *)in), high = _mm256_loadu_si256((const __m256i *)in + 1);
        largest = _mm256_max_epu32(largest, _mm256_and_si256(low, magnitude));
        largest = _mm256_max_epu32(largest, _mm256_and_si256(high, magnitude));
        const __m256i packed = _mm256_packus_epi32(round_8(low), round_8(high)); /* low, high, low, high */
        _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(packed, 0xD8));
    }
    /* no unsigned comparison: magnitudes have no sign, so they can be compared as signed numbers */
    const __m256i unusual = _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(FIRST_UNUSUAL - 1));
    return !_mm256_movemask_epi8(unusual) && cast_one_by_one(in, out, count);
}

/* What a CPU can do, the best first: the CRC-32 gains most from wide registers, the cast waits for memory. */

typedef struct {
    const char *name;
    uint32_t (*crc)(uint32_t, const uint8_t *, size_t);
} Level;

static const Level LEVELS[] = {{"avx512", crc_avx512}, {"vpclmulqdq", crc_vpclmulqdq}, {"avx2", crc_avx2}};

static int
is_supported(const Level *level)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("pclmul"))
        return 0;
    if (level->crc == crc_avx2)
        return 1;
    if (!__builtin_cpu_supports("vpclmulqdq"))
        return 0;
    return level->crc == crc_vpclmulqdq || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"));
}

/* Read or write all; 0 if that fails, or the file ends. */

static int
read_all(int file, uint8_t *data, size_t nbytes, off_t start)
{
    while (nbytes) {
        ssize_t done = pread(file, data, nbytes, start);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0;
        data += done, start += done, nbytes -= (size_t)done;
    }
    return 1;
}

static int
write_all(int file, const uint8_t *data, size_t nbytes, off_t start)
{
    while (nbytes) {
        ssize_t done = pwrite(file, data, nbytes, start);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0;
        data += done, start += done, nbytes -= (size_t)done;
    }
    return 1;
}

typedef struct {
    int file;
    long long start, nbytes;
    uint32_t crc;
} Piece;

typedef struct {
    uint8_t read[READ_BYTES];
    uint8_t write[WRITE_BYTES + 2];
} Memory;

/* How many bytes to write at once from there on: up to a multiple of WRITE_BYTES, so that the kernel has whole pages
   (nearly so where a bfloat16 lies across it); at least the 2 of a bfloat16. */
static size_t
bytes_to_write(off_t start)
{
    size_t nbytes = WRITE_BYTES - (size_t)(start % WRITE_BYTES);
    return nbytes < 2 ? nbytes + WRITE_BYTES : nbytes;
}

/* Copy pieces, one behind the other, to a file from a byte on; 0 if that fails or something is unusual. */
static int
copy_pieces(const Level *level, int casts, Piece *pieces, Py_ssize_t count, int file, off_t start, Memory *memory)
{
    size_t filled = 0, limit = bytes_to_write(start);
    for (Piece *piece = pieces; piece < pieces + count; piece++) {
        off_t at = (off_t)piece->start;
        size_t left = (size_t)piece->nbytes;
        piece->crc = 0xFFFFFFFFu;
        while (left) {
            if (limit - filled < 2) {
                if (!write_all(file, memory->write, filled, start))
                    return 0;
                start += (off_t)filled, filled = 0, limit = bytes_to_write(start);
            }
            size_t room = casts ? (limit - filled) / 2 * 4 : limit - filled, nbytes = left < room ? left : room;
            nbytes = nbytes < READ_BYTES ? nbytes : READ_BYTES;
            uint8_t *to = memory->write + filled, *read = casts ? memory->read : to;
            if (!read_all(piece->file, read, nbytes, at))
                return 0;
            piece->crc = level->crc(piece->crc, read, nbytes);
            if (casts && !cast(read, to, nbytes / 4))
                return 0;
            filled += casts ? nbytes / 2 : nbytes, at += (off_t)nbytes, left -= nbytes;
        }
        piece->crc = ~piece->crc;
    }
    return write_all(file, memory->write, filled, start);
}

/* Taking Python's values and giving some back. INTERFACE changes when copy is to be called in another way: an old
   compiled file may lie beside newer Python code. */

#define INTERFACE 1

#define ALIGNMENT 64
#define MEMORY_BYTES (sizeof(Memory) + ALIGNMENT)

static const Level *
level_named(const char *name)
{
    for (size_t i = 0; i < sizeof LEVELS / sizeof *LEVELS; i++)
        if (!strcmp(LEVELS[i].name, name) && is_supported(&LEVELS[i]))
            return &LEVELS[i];
    PyErr_Format(PyExc_ValueError, "%s is not one of LEVELS", name);
    return NULL;
}

static Piece *
pieces_of(PyObject *tuple, int casts)
{
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    Piece *pieces = PyMem_New(Piece, (size_t)count + 1);
    if (!pieces)
        return (Piece *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        Piece *piece = &pieces[i];
        if (PyArg_Parse(PyTuple_GET_ITEM(tuple, i), "(iLL)", &piece->file, &piece->start, &piece->nbytes)) {
            if (piece->start >= 0 && piece->nbytes >= 0 && !(casts && piece->nbytes % 4))
                continue;
            PyErr_SetString(PyExc_ValueError, "a piece is no range of such values");
        }
        PyMem_Free(pieces);
        return NULL;
    }
    return pieces;
}

static PyObject *
checksums_of(const Piece *pieces, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *crc = PyLong_FromUnsignedLong(pieces[i].crc);
        if (!crc)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, crc);
    }
    return list;
}

static PyObject *
copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    int casts, file;
    PyObject *tuple, *result = NULL;
    long long start;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "spO!iLw*", &name, &casts, &PyTuple_Type, &tuple, &file, &start, &buffer))
        return NULL;
    const Level *level = level_named(name);
    if (level && (start < 0 || buffer.len < (Py_ssize_t)MEMORY_BYTES))
        PyErr_SetString(PyExc_ValueError, "start is negative, or memory has fewer than MEMORY_BYTES");
    else if (level) {
        Py_ssize_t count = PyTuple_GET_SIZE(tuple);
        Piece *pieces = pieces_of(tuple, casts);
        if (pieces) {
            uintptr_t memory = ((uintptr_t)buffer.buf + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            int copied;
            Py_BEGIN_ALLOW_THREADS
            copied = copy_pieces(level, casts, pieces, count, file, (off_t)start, (Memory *)memory);
            Py_END_ALLOW_THREADS
            result = copied ? checksums_of(pieces, count) : Py_NewRef(Py_None);
            PyMem_Free(pieces);
        }
    }
    PyBuffer_Release(&buffer);
    return result;
}

static PyMethodDef functions[] = {{"copy", copy, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static int
execute(PyObject *module)
{
    prepare();
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < sizeof LEVELS / sizeof *LEVELS; i++) {
        PyObject *name = is_supported(&LEVELS[i]) ? PyUnicode_FromString(LEVELS[i].name) : NULL;
        if ((name && PyList_Append(names, name)) || (!name && PyErr_Occurred()))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *levels = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    int failed = !levels || PyModule_AddObjectRef(module, "LEVELS", levels) ||
                 PyModule_AddIntConstant(module, "MEMORY_BYTES", (long)MEMORY_BYTES) ||
                 PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
    Py_XDECREF(levels);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "dcptools.writer._native", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
