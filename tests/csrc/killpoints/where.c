/* Addresses become lines of source, by addr2line.  Without that program they stay addresses. */
#define _GNU_SOURCE
#include "where.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT 512

/* What addr2line said before: a bad step is often bad in many scenarios. */
static struct {
    void *site;
    char text[TEXT];
} known[512];
static int known_count;

static void
ask(void *site, char *to)
{
    char command[256], exe[160], line[256];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);

    exe[n > 0 ? n : 0] = '\0';
    /* A return address is behind its call, perhaps in the next line. */
    snprintf(command, sizeof command, "addr2line -s -f -i -p -e '%s' %#lx 2>/dev/null", exe,
             (unsigned long) (uintptr_t) site - 1);
    FILE *out = popen(command, "r");

    to[0] = '\0';
    while (out != NULL && fgets(line, sizeof line, out) != NULL) {
        const char *by = " (inlined by) ";
        char *name = strncmp(line, by, strlen(by)) == 0 ? line + strlen(by) : line;
        char *end = strpbrk(name, "\n("), *at = strstr(name, " at ");

        if (end != NULL) {
            *end = '\0';
        }
        if (at != NULL && strlen(to) + strlen(name) + 4 < TEXT) { /* "name file:line" */
            *at = '\0';
            sprintf(to + strlen(to), "%s%s %s", to[0] != '\0' ? " < " : "", name, at + 4);
        }
    }
    if (out != NULL) {
        pclose(out);
    }
    if (to[0] == '\0') {
        snprintf(to, TEXT, "%p", site);
    }
}

static const char *
text_of(void *site)
{
    static char text[TEXT];

    for (int i = 0; i < known_count; i++) {
        if (known[i].site == site) {
            return known[i].text;
        }
    }
    ask(site, text);
    if (known_count < (int) (sizeof known / sizeof *known)) {
        known[known_count].site = site;
        strcpy(known[known_count++].text, text);
    }
    return text;
}

void
where_print(const struct point_note *note, const char *indent)
{
    if (note->number == 0) {
        return;
    }
    printf("%spoint %lu, before %s in %s", indent, note->number, note->step, text_of(note->site));
    for (int i = 0; i < note->depth && i < 4; i++) {
        printf(" < %s", text_of(note->callers[i]));
    }
    printf("\n");
}
