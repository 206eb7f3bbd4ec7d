// Columns of the tables that degrade_samples takes, one row per sample. finpercep/data/degradations/compiled.py has the
// same names; a test compares them.
#pragma once
#include <cstdint>

namespace finpercep {

// `integers`, int64: height and width of the photo, after the first and second order, and of the result; then how each
// of the three is resized, and the mode of borders, which is always bilinear.
#define FINPERCEP_DRAWN_INTEGERS(X) \
  X(height) X(width) X(height1) X(width1) X(height2) X(width2) X(final_height) X(final_width) \
  X(mode1) X(mode2) X(final_mode) X(bilinear)
// `flags`, bool.
#define FINPERCEP_DRAWN_FLAGS(X) X(gaussian1) X(gray1) X(gaussian2) X(gray2) X(blurred) X(sinc_first)

#define FINPERCEP_COLUMN(name) name,
#define FINPERCEP_COLUMN_NAME(name) #name,
struct DrawnInteger {
  enum Column : int { FINPERCEP_DRAWN_INTEGERS(FINPERCEP_COLUMN) count };
  static constexpr const char* names[] = {FINPERCEP_DRAWN_INTEGERS(FINPERCEP_COLUMN_NAME)};
};
struct DrawnFlag {
  enum Column : int { FINPERCEP_DRAWN_FLAGS(FINPERCEP_COLUMN) count };
  static constexpr const char* names[] = {FINPERCEP_DRAWN_FLAGS(FINPERCEP_COLUMN_NAME)};
};
#undef FINPERCEP_COLUMN
#undef FINPERCEP_COLUMN_NAME

constexpr int64_t kDrawnStrengths = 2;  // of both noises
constexpr int64_t kDrawnKeys = 4;       // two for each noise
constexpr int64_t kDrawnTables = 4;     // luma, chroma of both JPEGs, (8,8) each

}  // namespace finpercep
