/* The floor of the benchmark: what a container cannot do without, and nothing else.
 *
 *   floor run ROOTFS PROGRAM    the namespaces and mounts of `runc spec`, then PROGRAM in them
 *   floor peak PROGRAM ARG...   runs PROGRAM, then prints its peak resident memory in KiB
 *
 * `run` has no control group, no seccomp filter, no masked path, no state: whatever a runtime
 * costs beyond it is the runtime's own. `peak` is here because a process that is started by a
 * large one inherits the large one's peak (the kernel counts the memory before exec); this
 * program is as small as a process can be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		_exit(125);
	}
}

static void devices(void)
{
	static const struct { const char *name; int minor; } memory[] = {
		{ "dev/null", 3 }, { "dev/zero", 5 }, { "dev/full", 7 },
		{ "dev/random", 8 }, { "dev/urandom", 9 },
	};
	umask(0);
	for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
		must(mknod(memory[i].name, S_IFCHR | 0666, makedev(1, memory[i].minor)), "mknod");
	must(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)), "mknod");
	must(symlink("/proc/self/fd", "dev/fd"), "symlink");
	must(symlink("pts/ptmx", "dev/ptmx"), "symlink");
	umask(022);
}

static void child(const char *rootfs, const char *program)
{
	const unsigned long strict = MS_NOSUID | MS_NOEXEC | MS_NODEV;

	must(mount("", "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
	must(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL), "bind");
	must(chdir(rootfs), "chdir");
	must(mount("proc", "proc", "proc", 0, NULL), "proc");
	must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
	must(mkdir("dev/pts", 0755), "mkdir");
	must(mkdir("dev/shm", 0755), "mkdir");
	must(mkdir("dev/mqueue", 0755), "mkdir");
	must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		   "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
	must(mount("shm", "dev/shm", "tmpfs", strict, "mode=1777,size=65536k"), "shm");
	must(mount("mqueue", "dev/mqueue", "mqueue", strict, NULL), "mqueue");
	must(mount("sysfs", "sys", "sysfs", strict | MS_RDONLY, NULL), "sysfs");
	devices();
	must(sethostname("floor", 5), "sethostname");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(mount("", "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), "read-only");
	execl(program, program, (char *)NULL);
	must(-1, program);
}

static int ended(pid_t pid, struct rusage *usage)
{
	int status;

	while (wait4(pid, &status, 0, usage) < 0)
		must(errno == EINTR ? 0 : -1, "wait4");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	struct rusage usage;

	if (argc == 4 && !strcmp(argv[1], "run")) {
		struct clone_args args = {
			.flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID |
				 CLONE_NEWNET | CLONE_NEWCGROUP,
			.exit_signal = SIGCHLD,
		};
		pid_t pid = syscall(SYS_clone3, &args, sizeof args);

		must(pid, "clone3");
		if (pid == 0)
			child(argv[2], argv[3]);
		return ended(pid, &usage);
	}
	if (argc >= 3 && !strcmp(argv[1], "peak")) {
		pid_t pid = vfork();

		must(pid, "vfork");
		if (pid == 0) {
			execv(argv[2], argv + 2);
			_exit(127);
		}
		int code = ended(pid, &usage);

		printf("%ld\n", usage.ru_maxrss);
		return code;
	}
	fprintf(stderr, "usage: floor run ROOTFS PROGRAM | floor peak PROGRAM ARG...\n");
	return 125;
}
