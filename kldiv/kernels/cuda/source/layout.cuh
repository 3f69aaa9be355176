// Where arrays are: the table of `kldiv.kernels.layout`, of at most AXES axes.  Row 0 has the
// number of axes, and their sizes from column STRIDES on; every other row is an array.

constexpr int AXES = 6, ADDRESS = 0, CONTIGUOUS = 1, STRIDES = 2;

template <int ARRAYS>
struct Table {
    long long cells[1 + ARRAYS][STRIDES + AXES];

    DEVICE_MEMBER bool has(int which) const { return cells[which][ADDRESS] != 0; }
    DEVICE_MEMBER int axes() const { return int(cells[0][0]); }
    DEVICE_MEMBER long long size(int axis) const { return cells[0][STRIDES + axis]; }
    DEVICE_MEMBER long long stride(int which, int axis) const {
        return cells[which][STRIDES + axis];
    }

    // The address of an element, given its number in the first `axes` axes.
    DEVICE_MEMBER char* at(int which, long long index, int axes) const {
        long long offset = 0;
        for (int axis = axes - 1; axis >= 0; --axis) {
            long long size = this->size(axis), next = index / size;
            offset += (index - next * size) * stride(which, axis);
            index = next;
        }
        return (char*)cells[which][ADDRESS] + offset;
    }
};
