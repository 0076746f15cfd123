/* The load generator of the TLS benchmark: echo_load.c over OpenSSL. */
#define TLS
#include "echo_load.c"
