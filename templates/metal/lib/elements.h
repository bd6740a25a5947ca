/* What the functions of elements need of Metal. */
#define el_sqrt precise::sqrt
#define el_floor floor
#define el_sin precise::sin
#define el_cos precise::cos
#define el_pow precise::pow
#define el_fmod precise::fmod
{% include "common/elements.h" %}
