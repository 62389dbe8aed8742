/* Mailboxes: what goes through them, what goes to the socket, and that both together keep their order. */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MESSAGES 20000u
#define SHORT_MOST 64u

static mpshm_arena *arena;
static mpshm_mailboxes *accepted, *called;
static int line[2]; /* the accepted end's, the caller's */

static void
open_both(void)
{
    arena = arena_of(tiny);
    CHECK_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
    accepted = mpshm_mailboxes_new(arena, 1, 50);
    called = mpshm_mailboxes_new(arena, 0, 50);
    CHECK(accepted != NULL && called != NULL);
}

static void
close_both(void)
{
    mpshm_mailboxes_free(called);
    mpshm_mailboxes_free(accepted);
    mpshm_arena_close(arena);
}

/* As an end does: by mailbox, or else through the socket, here as its bytes behind their number.  Whether by mailbox. */
static bool
send_message(mpshm_mailboxes *boxes, int fd, const char *data, uint32_t size)
{
    if (mpshm_mailbox_put(boxes, data, size)) {
        return true;
    }
    CHECK_EQ(sizeof size, write(fd, &size, sizeof size));
    CHECK_EQ(size, write(fd, data, size));
    mpshm_mailbox_posted(boxes);
    return false;
}

/* The message's size; 0: end of file. */
static uint32_t
receive_message(mpshm_mailboxes *boxes, int fd, char *to)
{
    int n;
    uint32_t size = 0;

    while ((n = mpshm_mailbox_receive(boxes)) == -EINTR) {
    }
    CHECK(n >= 0);
    if (n > 0) {
        memcpy(to, boxes->data, (size_t) n);
        return (uint32_t) n;
    }
    ssize_t got = read(fd, &size, sizeof size);

    if (got == 0) {
        return 0;
    }
    CHECK_EQ(sizeof size, got);
    for (uint32_t have = 0; have < size; have += (uint32_t) got) {
        got = read(fd, to + have, size - have);
        CHECK(got > 0);
    }
    mpshm_mailbox_read(boxes);
    return size;
}

static uint32_t
size_of(uint32_t number)
{
    return number % 97 == 0 ? MAILBOX_BYTES + 1 + number % 512 : 8 + number * 7 % SHORT_MOST;
}

static void *
ask(void *unused)
{
    static char data[MAILBOX_BYTES + 1024], answer[MAILBOX_BYTES + 1024];

    (void) unused;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        fill(data, size_of(i), i);
        send_message(called, line[1], data, size_of(i));
        if (i % 3 != 0) { /* some are sent two in a row */
            CHECK_EQ(size_of(i), receive_message(called, line[1], answer));
            CHECK(is_filled(answer, size_of(i), i));
        }
    }
    mpshm_mailbox_close(called);
    close(line[1]);
    return NULL;
}

static void
both_ways_keep_their_order(void)
{
    static char data[MAILBOX_BYTES + 1024];
    pthread_t asker;
    uint32_t size, by_mailbox = 0;

    open_both();
    CHECK_EQ(0, pthread_create(&asker, NULL, ask, NULL));
    for (uint32_t i = 0; i < MESSAGES; i++) {
        size = receive_message(accepted, line[0], data);
        CHECK_EQ(size_of(i), size);
        CHECK(is_filled(data, size, i));
        if (i % 3 != 0) {
            by_mailbox += send_message(accepted, line[0], data, size);
        }
    }
    CHECK_EQ(0, receive_message(accepted, line[0], data));
    CHECK(by_mailbox > 0);
    pthread_join(asker, NULL);
    close_both();
}

static void
a_message_is_left_for_one_that_comes(void)
{
    char to[8];

    open_both();
    CHECK(!send_message(called, line[1], "one", 3)); /* nobody has looked yet */
    CHECK_EQ(3, receive_message(accepted, line[0], to));
    CHECK(send_message(called, line[1], "two", 3));
    CHECK_EQ(1, mpshm_mailbox_is_full(accepted));
    CHECK(!send_message(called, line[1], "3", 1)); /* no room for a second */
    CHECK_EQ(3, receive_message(accepted, line[0], to));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    mpshm_mailbox_leave(accepted, 0);
    CHECK(!send_message(called, line[1], "4", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    CHECK(send_message(called, line[1], "5", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    mpshm_mailbox_leave(accepted, 1);
    for (int i = 0; i < 3; i++) {
        CHECK(!send_message(called, line[1], "6", 1));
        CHECK_EQ(1, receive_message(accepted, line[0], to));
    }
    close_both();
}

static void
longest_and_empty_messages(void)
{
    static char data[MAILBOX_BYTES + 1], to[MAILBOX_BYTES + 1];

    open_both();
    CHECK(!send_message(called, line[1], data, 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    fill(data, MAILBOX_BYTES, 5);
    CHECK(send_message(called, line[1], data, MAILBOX_BYTES));
    CHECK_EQ(MAILBOX_BYTES, receive_message(accepted, line[0], to));
    CHECK(is_filled(to, MAILBOX_BYTES, 5));
    CHECK(!send_message(called, line[1], data, MAILBOX_BYTES + 1));
    CHECK_EQ(MAILBOX_BYTES + 1, receive_message(accepted, line[0], to));
    CHECK(!send_message(called, line[1], data, 0));
    CHECK_EQ(0, receive_message(accepted, line[0], to));
    CHECK(send_message(called, line[1], data, 7));
    CHECK_EQ(7, receive_message(accepted, line[0], to));
    close_both();
}

static void
nothing_is_put_behind_one_that_has_failed(void)
{
    char to[8];

    open_both();
    CHECK(!send_message(called, line[1], "1", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    CHECK_EQ(0, mpshm_mailbox_put(called, "", 0)); /* and it could not be written */
    for (int i = 0; i < 3; i++) {
        CHECK(!send_message(called, line[1], "2", 1));
        CHECK_EQ(1, receive_message(accepted, line[0], to));
    }
    close_both();
}

static void
what_was_never_counted_or_written_holds_up_no_message(void)
{
    char to[8];

    open_both();
    CHECK(!send_message(called, line[1], "1", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    pid_t child = fork();

    if (child == 0) { /* it dies between the count and the write; its parent goes on with the end */
        CHECK_EQ(0, mpshm_mailbox_put(called, "", 0));
        kill(getpid(), SIGKILL);
    }
    CHECK_EQ(child, waitpid(child, NULL, 0));
    for (int i = 0; i < 3; i++) { /* its receiver is COMING still */
        CHECK(!send_message(called, line[1], "2", 1));
        CHECK_EQ(1, receive_message(accepted, line[0], to));
    }
    close_both();
}

static void
a_message_that_lies_here_when_its_receiver_leaves_is_the_last(void)
{
    char to[8];

    open_both();
    CHECK(!send_message(called, line[1], "1", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    CHECK(send_message(called, line[1], "2", 1));
    mpshm_mailbox_leave(accepted, 1);
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    CHECK(!send_message(called, line[1], "3", 1));
    CHECK_EQ(1, receive_message(accepted, line[0], to));
    close_both();
}

static void
a_sender_that_is_killed_is_seen_at_the_socket(void)
{
    char to[8];

    open_both();
    pid_t child = fork();

    if (child == 0) {
        CHECK_EQ(0, close(line[0]));
        send_message(called, line[1], "last", 4);
        kill(getpid(), SIGKILL);
    }
    CHECK_EQ(0, close(line[1]));
    CHECK_EQ(4, receive_message(accepted, line[0], to));
    CHECK_EQ(0, receive_message(accepted, line[0], to));
    CHECK_EQ(child, waitpid(child, NULL, 0));
    close_both();
}

static void
a_queue_has_none(void)
{
    mpshm_arena *queue = queue_arena_of(tiny, 0, 0, 0);

    CHECK(mpshm_mailboxes_new(queue, 1, 0) == NULL);
    mpshm_arena_close(queue);
}

static const struct test tests[] = {
    TEST(both_ways_keep_their_order),
    TEST(a_message_is_left_for_one_that_comes),
    TEST(longest_and_empty_messages),
    TEST(nothing_is_put_behind_one_that_has_failed),
    TEST(what_was_never_counted_or_written_holds_up_no_message),
    TEST(a_message_that_lies_here_when_its_receiver_leaves_is_the_last),
    TEST(a_sender_that_is_killed_is_seen_at_the_socket),
    TEST(a_queue_has_none),
};

RUN_TESTS(tests)
