/**
 * The filter of system calls that every box runs under, assembled as classic BPF (seccomp(2), struct sock_filter): what is not
 * listed here does not reach the kernel.
 */

/** Each system call that is open without condition: name, number on x64, number on arm64; empty where the machine lacks it. */
const OPEN = `
  read:0:63 write:1:64 open:2: close:3:57 stat:4: fstat:5:80 lstat:6: newfstatat:262:79 statx:332:291 poll:7:
  ppoll:271:73 lseek:8:62 mmap:9:222 mprotect:10:226 munmap:11:215 brk:12:214 mremap:25:216 msync:26:227
  mincore:27:232 madvise:28:233 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
  rt_sigtimedwait:128:137 rt_sigqueueinfo:129:138 rt_sigsuspend:130:133 rt_tgsigqueueinfo:297:240 sigaltstack:131:132
  restart_syscall:219:128 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 preadv:295:69 pwritev:296:70
  preadv2:327:286 pwritev2:328:287 access:21: faccessat:269:48 faccessat2:439:439 pipe:22: pipe2:293:59 select:23:
  pselect6:270:72 sched_yield:24:124 dup:32:23 dup2:33: dup3:292:24 pause:34: nanosleep:35:101 getitimer:36:102
  setitimer:38:103 alarm:37: getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174 geteuid:107:175
  getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgid:121:155 getpgrp:111:
  getsid:124:156 setpgid:109:154 setsid:112:157 sendfile:40:71 sendto:44:206 recvfrom:45:207 sendmsg:46:211
  recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243 shutdown:48:210 bind:49:200 listen:50:201 getsockname:51:204
  getpeername:52:205 connect:42:203 accept:43:202 accept4:288:242 setsockopt:54:208 getsockopt:55:209 fork:57:
  vfork:58: execve:59:221 execveat:322:281 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 kill:62:129
  tkill:200:130 tgkill:234:131 uname:63:160 fcntl:72:25 flock:73:32 fsync:74:82 fdatasync:75:83
  sync_file_range:277:84 truncate:76:45 ftruncate:77:46 fallocate:285:47 getdents:78: getdents64:217:61 getcwd:79:17
  chdir:80:49 fchdir:81:50 rename:82: renameat:264:38 renameat2:316:276 mkdir:83: mkdirat:258:34 rmdir:84: creat:85:
  link:86: linkat:265:37 unlink:87: unlinkat:263:35 symlink:88: symlinkat:266:36 readlink:89: readlinkat:267:78
  chmod:90: fchmod:91:52 fchmodat:268:53 umask:95:166 utime:132: utimes:235: utimensat:280:88 futimesat:261:
  gettimeofday:96:169 time:201: times:100:153 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261 getrusage:98:165
  sysinfo:99:179 getpriority:140:141 setpriority:141:140 sched_getparam:143:121 sched_getscheduler:145:120
  sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_rr_get_interval:148:127
  sched_getaffinity:204:123 sched_getattr:315:275 prctl:157:167 arch_prctl:158: futex:202:98 futex_waitv:449:449
  set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 membarrier:324:283
  getcpu:309:168 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109
  timer_delete:226:111 clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 timerfd_create:283:85
  timerfd_settime:286:86 timerfd_gettime:287:87 epoll_create:213: epoll_create1:291:20 epoll_ctl:233:21
  epoll_wait:232: epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284: eventfd2:290:19 signalfd:282: signalfd4:289:74
  inotify_init:253: inotify_init1:294:26 inotify_add_watch:254:27 inotify_rm_watch:255:28 splice:275:76 tee:276:77
  copy_file_range:326:285 fadvise64:221:223 readahead:187:213 statfs:137:43 fstatfs:138:44 getrandom:318:278
  getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 mlock:149:228
  munlock:150:229 mlock2:325:284 pkey_alloc:330:289 pkey_free:331:290 pkey_mprotect:329:288 close_range:436:436
  pidfd_open:434:434 pidfd_send_signal:424:424 openat:257:56
`;

/** Open under a condition on their arguments, or answered so that libraries fall back to what is open. */
const GUARDED: Readonly<Record<string, { readonly numbers: readonly [number, number]; readonly rule: Rule }>> = {
  // No new namespaces; 0x80 is CLONE_NEWTIME, which clone() cannot ask for today.
  clone: { numbers: [56, 220], rule: { kind: 'bits-clear', argument: 0, mask: 0x7e020080 } },
  // Its flags lie behind a pointer, where a filter cannot look; glibc falls back to clone().
  clone3: { numbers: [435, 435], rule: { kind: 'errno', errno: 38 } },
  // 1 is AF_UNIX. Virtual sockets would leave the network namespace.
  socket: { numbers: [41, 198], rule: { kind: 'one-of', argument: 0, values: [1], errno: 97 } },
  socketpair: { numbers: [53, 199], rule: { kind: 'one-of', argument: 0, values: [1], errno: 97 } },
  // TIOCSTI, TIOCLINUX and TIOCSETD type into, or rewire, a terminal. The kernel looks at the low 32 bits only, and so does this.
  ioctl: { numbers: [16, 29], rule: { kind: 'none-of', argument: 1, values: [0x5412, 0x541c, 0x5423] } },
  personality: { numbers: [135, 92], rule: { kind: 'one-of', argument: 0, values: [0, 0xffffffff], errno: 1 } },
  io_uring_setup: { numbers: [425, 425], rule: { kind: 'errno', errno: 38 } },
};

type Rule =
  | { readonly kind: 'allow' }
  | { readonly kind: 'errno'; readonly errno: number }
  | { readonly kind: 'bits-clear'; readonly argument: number; readonly mask: number }
  | {
      readonly kind: 'one-of';
      readonly argument: number;
      readonly values: readonly number[];
      readonly errno: number;
    }
  | { readonly kind: 'none-of'; readonly argument: number; readonly values: readonly number[] };

export type FilterMachine = 'x64' | 'arm64';

/** AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64. */
const AUDIT_ARCH: Readonly<Record<FilterMachine, number>> = { x64: 0xc000003e, arm64: 0xc00000b7 };

const KILL_PROCESS = 0x80000000;
const ALLOW = 0x7fff0000;
const errnoAction = (errno: number) => 0x00050000 + errno;
const EPERM = 1;
const ENOSYS = 38;

/** From this number on both machines number alike, and libraries try a call first and fall back on ENOSYS, not on EPERM. */
const RECENT = 424;
/** Numbers with this bit are another calling convention of x64, with a table of its own. */
const X32_BIT = 0x40000000;

interface Instruction {
  readonly code: number;
  readonly yes: number;
  readonly no: number;
  readonly k: number;
}

const load = (offset: number): Instruction => ({ code: 0x20, yes: 0, no: 0, k: offset });
const equals = (k: number, yes: number, no: number): Instruction => ({ code: 0x15, yes, no, k });
const atLeast = (k: number, yes: number, no: number): Instruction => ({ code: 0x35, yes, no, k });
const anyBit = (k: number, yes: number, no: number): Instruction => ({ code: 0x45, yes, no, k });
const answer = (action: number): Instruction => ({ code: 0x06, yes: 0, no: 0, k: action });

const NUMBER_OFFSET = 0;
const ARCH_OFFSET = 4;
/** The low half of a 64-bit argument; both machines are little-endian. */
const argumentOffset = (index: number) => 16 + 8 * index;

/** The program for {@link https://man7.org/linux/man-pages/man2/seccomp.2.html seccomp(2)}: 8 bytes for each instruction. */
export function assembleFilter(machine: FilterMachine): Uint8Array {
  const spans = toSpans(rulesFor(machine));
  const program = [
    load(ARCH_OFFSET),
    equals(AUDIT_ARCH[machine], 1, 0),
    answer(KILL_PROCESS),
    load(NUMBER_OFFSET),
    ...(machine === 'x64' ? [atLeast(X32_BIT, 0, 1), answer(errnoAction(ENOSYS))] : []),
    ...decide(spans),
  ];
  const bytes = new DataView(new ArrayBuffer(program.length * 8));
  program.forEach(({ code, yes, no, k }, index) => {
    if (yes > 255 || no > 255) throw new RangeError('A jump of the filter is too long.');
    bytes.setUint16(index * 8, code, true);
    bytes.setUint8(index * 8 + 2, yes);
    bytes.setUint8(index * 8 + 3, no);
    bytes.setUint32(index * 8 + 4, k, true);
  });
  return new Uint8Array(bytes.buffer);
}

function rulesFor(machine: FilterMachine): Map<number, Rule> {
  const rules = new Map<number, Rule>();
  for (const entry of OPEN.trim().split(/\s+/)) {
    const [, x64, arm64] = entry.split(':');
    const number = machine === 'x64' ? x64 : arm64;
    if (number) rules.set(Number(number), { kind: 'allow' });
  }
  for (const { numbers, rule } of Object.values(GUARDED)) rules.set(numbers[machine === 'x64' ? 0 : 1], rule);
  return rules;
}

/** A rule holds from `first` until the next span begins. */
interface Span {
  readonly first: number;
  readonly rule: Rule;
}

/** Neighbours under one rule become one span; what has no rule is refused. */
function toSpans(rules: ReadonlyMap<number, Rule>): Span[] {
  const refused: Rule = { kind: 'errno', errno: EPERM };
  const unknown: Rule = { kind: 'errno', errno: ENOSYS };
  const last = Math.max(RECENT, ...rules.keys()) + 1;
  const spans: Span[] = [];
  for (let number = 0; number <= last; number++) {
    const rule = rules.get(number) ?? (number < RECENT ? refused : unknown);
    const before = spans.at(-1)?.rule;
    if (before === undefined || JSON.stringify(before) !== JSON.stringify(rule)) spans.push({ first: number, rule });
  }
  return spans;
}

/** Binary search over the spans. */
function decide(spans: readonly Span[]): Instruction[] {
  if (spans.length === 1) return apply(spans[0]!.rule);
  const middle = spans.length >> 1;
  const low = decide(spans.slice(0, middle));
  return [atLeast(spans[middle]!.first, low.length, 0), ...low, ...decide(spans.slice(middle))];
}

function apply(rule: Rule): Instruction[] {
  switch (rule.kind) {
    case 'allow':
      return [answer(ALLOW)];
    case 'errno':
      return [answer(errnoAction(rule.errno))];
    case 'bits-clear':
      return [load(argumentOffset(rule.argument)), anyBit(rule.mask, 0, 1), answer(errnoAction(EPERM)), answer(ALLOW)];
    case 'one-of':
      return [
        load(argumentOffset(rule.argument)),
        ...rule.values.map((value, index) => equals(value, rule.values.length - index, 0)),
        answer(errnoAction(rule.errno)),
        answer(ALLOW),
      ];
    case 'none-of':
      return [
        load(argumentOffset(rule.argument)),
        ...rule.values.map((value, index) => equals(value, rule.values.length - index, 0)),
        answer(ALLOW),
        answer(errnoAction(EPERM)),
      ];
  }
}
