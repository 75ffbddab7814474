/* The first process of the bare guest of `cargo xtask bench microvm`: says a word, and waits. */
#include <fcntl.h>
#include <unistd.h>

int main(void)
{
	int console = open("/dev/console", O_WRONLY);
	if (write(console, "MARKER\n", 7) == 7)
		for (;;)
			pause();
}
