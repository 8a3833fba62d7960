import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { Digest } from '../base/digest.ts';
import type { Runtime, SandboxPolicy, Termination } from '../capabilities/vm.ts';
import { type MemoryTrees, SMALL_POLICY, type TreeContent } from './runtime-conformance.ts';

/** Something that a hostile program does: it prints `held`, or `escaped` and what it reached. */
interface Attack {
  readonly name: string;
  /** The limit, as a key of `enforcedBy`, that has to stop it. */
  readonly limit: string;
  /** Python; see {@link PRELUDE}. */
  readonly program: string;
  /** How the run ends when the limit ends the whole program; which part of it the kernel ends first is not always the same. */
  readonly ends?: Termination;
  readonly policy?: Partial<SandboxPolicy>;
  /** The second time it looks for what the first time left. */
  readonly isTwice?: true;
}

/**
 * `host`: what the test prepared on the host. `refused(work)`: held when `work` raises an OSError. `syscall(x64, arm64, ...)`: the call of
 * that number.
 */
const PRELUDE = `
import ctypes, errno, fcntl, json, os, platform, resource, signal, socket, stat, subprocess, sys, threading, time
host = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
def held(*why): print('held', *why, flush=True); os._exit(0)
def escaped(*what): print('escaped', *what, flush=True); os._exit(0)
def syscall(x64, arm64, *arguments):
    number = arm64 if platform.machine() == 'aarch64' else x64
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0: raise OSError(ctypes.get_errno(), 'call %d' % number)
    return result
def refused(*works):
    why = []
    for work in works:
        try: reached = work()
        except OSError as error: why.append(errno.errorcode.get(error.errno, error.errno))
        else: escaped(repr(reached)[:200])
    held(*why)
def read(name):
    with open(name, 'rb') as file: return file.read(4096)
def write(name):
    with open(name, 'wb') as file: file.write(b'x')
`;

const connect = (family: string, address: string) =>
  `s = socket.socket(${family}, socket.SOCK_STREAM); s.settimeout(2); s.connect(${address})`;

const ATTACKS: readonly Attack[] = [
  // files
  { name: 'reads a file of the host', limit: 'files', program: 'refused(lambda: read(host["file"]))' },
  { name: 'lists the folder of the node', limit: 'files', program: 'refused(lambda: os.listdir(host["folder"]))' },
  {
    name: 'reads the accounts of the host',
    limit: 'files',
    program: 'refused(*[lambda name=name: read(name) for name in ("/etc/passwd", "/etc/shadow", "/root/.ssh/id_rsa")])',
  },
  {
    name: 'goes through /proc to another root',
    limit: 'files',
    program: `refused(*[lambda root=root: read(root + host["file"]) for root in
  ("/proc/self/root", "/proc/1/root", "/proc/self/root/..", "/proc/1/cwd/..", "/proc/self/cwd/../..")])`,
  },
  {
    name: 'follows a link that it makes',
    limit: 'files',
    program: 'os.symlink(host["file"], "/tmp/link"); refused(lambda: read("/tmp/link"))',
  },
  { name: 'follows a link that its package brings', limit: 'files', program: 'refused(lambda: read("/package/link"))' },
  {
    name: 'writes outside /tmp',
    limit: 'files',
    program: `refused(*[lambda name=name: write(name) for name in
  ("/x", "/usr/x", "/usr/bin/x", "/etc/x", "/package/main.py", "/package/x", "/packages/x", "/dev/x", "/home/x")])`,
  },
  {
    name: 'changes its package by mode, time or name',
    limit: 'files',
    program: `refused(lambda: os.chmod("/package/main.py", 0o777), lambda: os.utime("/package/main.py"),
  lambda: os.rename("/package/main.py", "/package/y"), lambda: os.remove("/package/main.py"))`,
  },
  {
    name: 'opens a file by its handle',
    limit: 'syscalls',
    program: 'refused(lambda: syscall(304, 265, -100, ctypes.create_string_buffer(128), 0))',
  },
  {
    name: 'makes a device',
    limit: 'syscalls',
    program: `refused(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0)),
  lambda: os.mknod("/tmp/memory", stat.S_IFCHR | 0o666, os.makedev(1, 1)))`,
  },
  {
    name: 'opens devices of the machine',
    limit: 'files',
    program: `refused(*[lambda name=name: read("/dev/" + name) for name in
  ("mem", "kmsg", "vda", "sda", "kvm", "fuse", "net/tun", "vsock", "loop-control", "tty", "console")])`,
  },
  {
    name: 'reads about the kernel',
    limit: 'files',
    program: `for name in ("kcore", "kmsg", "kallsyms", "keys", "config.gz", "cmdline", "modules", "timer_list"):
    try: said = read("/proc/" + name)
    except OSError: continue
    if said: escaped(name)
held()`,
  },
  {
    name: 'writes settings of the kernel',
    limit: 'isolation',
    program: `def change(name, text): return os.write(os.open(name, os.O_WRONLY), text)
refused(lambda: change("/proc/sys/kernel/core_pattern", b"|/tmp/x"), lambda: change("/proc/sys/kernel/hostname", b"x"),
  lambda: change("/proc/sys/vm/overcommit_memory", b"1"), lambda: change("/proc/self/oom_score_adj", b"-1000"))`,
  },
  {
    name: 'uses /sys or the control groups',
    limit: 'files',
    program: 'refused(lambda: os.listdir("/sys/fs/cgroup"), lambda: os.listdir("/sys"), lambda: os.mkdir("/sys"))',
  },
  // namespaces and mounts
  {
    name: 'mounts',
    limit: 'syscalls',
    program:
      'refused(lambda: syscall(165, 40, b"none", b"/tmp", b"tmpfs", 0, None), lambda: syscall(166, 39, b"/tmp", 2))',
  },
  {
    name: 'mounts by the newer calls',
    limit: 'syscalls',
    program: `refused(lambda: syscall(428, 428, -100, b"/", 1), lambda: syscall(430, 430, b"tmpfs", 0),
  lambda: syscall(429, 429, 0, b"", -100, b"/tmp", 4), lambda: syscall(442, 442, -100, b"/", 0, None, 0))`,
  },
  {
    name: 'makes namespaces',
    limit: 'syscalls',
    program: `refused(*[lambda flag=flag: syscall(272, 97, flag) for flag in
  (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x2000000, 0x80)])`,
  },
  {
    name: 'makes a child in a user namespace',
    limit: 'syscalls',
    program:
      'refused(lambda: syscall(56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0), lambda: syscall(435, 435, ctypes.create_string_buffer(88), 88))',
  },
  {
    name: 'enters namespaces of others',
    limit: 'syscalls',
    program: `def enter(name): return syscall(308, 268, os.open("/proc/1/ns/" + name, os.O_RDONLY), 0)
refused(*[lambda name=name: enter(name) for name in ("mnt", "net", "pid", "user")])`,
  },
  {
    name: 'changes its root',
    limit: 'syscalls',
    program: 'refused(lambda: os.chroot("/tmp"), lambda: syscall(155, 41, b"/tmp", b"/tmp"))',
  },
  // other processes
  {
    name: 'sees processes of the host',
    limit: 'isolation',
    program: `seen = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) > 1 and int(pid) != os.getpid()]
escaped(*seen) if seen else held()`,
  },
  {
    name: 'signals processes of the host',
    limit: 'isolation',
    program:
      'refused(*[lambda pid=pid: os.kill(pid, signal.SIGKILL) for pid in host["pids"] if pid not in (1, os.getpid())])',
  },
  {
    name: 'signals everything it can see',
    limit: 'isolation',
    program: `signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
    try: os.kill(1, number)
    except OSError: pass
time.sleep(0.05)
held()`,
  },
  {
    name: 'traces and reads processes',
    limit: 'syscalls',
    program: `refused(lambda: syscall(101, 117, 16, 1, 0, 0), lambda: syscall(101, 117, 0, 0, 0, 0),
  lambda: syscall(310, 270, 1, None, 0, None, 0, 0), lambda: syscall(438, 438, 0, 0, 0))`,
  },
  // network
  {
    name: 'connects to the host by TCP',
    limit: 'network',
    program: `def go(): ${connect('socket.AF_INET', '("127.0.0.1", host["port"])')}\nrefused(go)`,
  },
  {
    name: 'connects by IPv6',
    limit: 'network',
    program: `def go(): ${connect('socket.AF_INET6', '("::1", host["port"])')}\nrefused(go)`,
  },
  {
    name: 'sends datagrams',
    limit: 'network',
    program: 'refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53)))',
  },
  {
    name: 'opens raw and packet sockets',
    limit: 'network',
    program:
      'refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), lambda: socket.socket(17, socket.SOCK_RAW, 768))',
  },
  {
    name: 'talks to the hypervisor by VSOCK',
    limit: 'network',
    program: 'refused(lambda: socket.socket(40, socket.SOCK_STREAM))',
  },
  {
    name: 'opens kernel sockets: NETLINK, ALG, Bluetooth',
    limit: 'network',
    program:
      'refused(*[lambda family=family: socket.socket(family, kind) for family in (16, 38, 31) for kind in (socket.SOCK_RAW, 5)])',
  },
  {
    name: 'connects to an abstract socket of the host',
    limit: 'network',
    program: `def go(): ${connect('socket.AF_UNIX', '"\\0" + host["abstract"]')}\nrefused(go)`,
  },
  {
    name: 'connects to a socket file of the host',
    limit: 'files',
    program: `def go(): ${connect('socket.AF_UNIX', 'host["socket"]')}\nrefused(go)`,
  },
  {
    name: 'finds a network interface',
    limit: 'network',
    program:
      'names = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]\nescaped(*names) if set(names) - {"lo"} else held()',
  },
  // the kernel
  {
    name: 'uses the key rings',
    limit: 'syscalls',
    program: `refused(lambda: syscall(250, 219, 0, -3, 1), lambda: syscall(248, 217, b"user", b"k", b"v", 1, -3),
  lambda: syscall(249, 218, b"user", b"k", None, -3))`,
  },
  {
    name: 'uses io_uring',
    limit: 'syscalls',
    program: 'refused(lambda: syscall(425, 425, 8, ctypes.create_string_buffer(120)))',
  },
  {
    name: 'loads programs into the kernel',
    limit: 'syscalls',
    program: `refused(lambda: syscall(321, 280, 0, ctypes.create_string_buffer(128), 128), lambda: syscall(175, 105, b"", 0, b""),
  lambda: syscall(246, 104, 0, 0, None, 0), lambda: syscall(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0))`,
  },
  {
    name: 'uses userfaultfd and anonymous files',
    limit: 'syscalls',
    program: 'refused(lambda: syscall(323, 282, 1), lambda: syscall(319, 279, b"x", 0), lambda: syscall(447, 447, 0))',
  },
  {
    name: 'administers the machine',
    limit: 'syscalls',
    program: `refused(lambda: syscall(169, 142, 0xfee1dead, 672274793, 0, None), lambda: syscall(167, 224, b"/tmp/x", 0),
  lambda: syscall(170, 161, b"x", 1), lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: syscall(103, 116, 3, None, 0))`,
  },
  // privileges
  {
    name: 'becomes root',
    limit: 'isolation',
    program:
      'refused(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0))',
  },
  {
    name: 'gains rights from a file',
    limit: 'isolation',
    program: `status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
left = [name for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)]
escaped(*left) if left or status["NoNewPrivs"].strip() != "1" else held()`,
  },
  {
    name: 'raises its own limits',
    limit: 'isolation',
    program: `def more(which):
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (hard + 1, hard + 1))
why = []
for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
    try: more(which)
    except (OSError, ValueError): why.append(which)
    else: escaped(which)
held(*why)`,
  },
  {
    name: 'takes more than its turn: priority, real time, processors',
    limit: 'isolation',
    program: `refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20), lambda: os.sched_setaffinity(0, {0}),
  lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))`,
  },
  {
    name: 'types into a terminal',
    limit: 'syscalls',
    program: `master, slave = os.openpty()
refused(lambda: fcntl.ioctl(slave, 0x5412, b"x"), lambda: fcntl.ioctl(slave, 0x541c, b"x"), lambda: open("/dev/tty"))`,
  },
  {
    name: 'turns off the randomness of addresses',
    limit: 'syscalls',
    program: 'refused(lambda: syscall(135, 92, 0x40000))',
  },
  // leaks
  {
    name: 'finds secrets in environments',
    limit: 'isolation',
    program: `found = []
for pid in [pid for pid in os.listdir("/proc") if pid.isdigit()]:
    try:
        if host["secret"].encode() in read("/proc/%s/environ" % pid): found.append(pid)
    except OSError: pass
escaped(*found) if found or host["secret"] in str(os.environ) else held()`,
  },
  {
    name: 'finds open descriptors',
    limit: 'isolation',
    program: `def isopen(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
found = [fd for fd in range(3, 4096) if isopen(fd)]
escaped(*found) if found else held()`,
  },
  {
    name: 'leaves files for the next run',
    limit: 'tmp',
    isTwice: true,
    program: `places = ("/tmp/left", "/dev/shm/left", "/var/tmp/left", "/run/left")
if any(os.path.exists(place) for place in places): escaped()
why = []
for place in places:
    try: write(place)
    except OSError: why.append(place)
held(*why)`,
  },
  {
    name: 'leaves a daemon that holds its output',
    limit: 'wall',
    program: `if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
held()`,
  },
  // amounts
  {
    name: 'forks without end',
    limit: 'pids',
    policy: { memoryBytes: 2 ** 30 },
    program: `count = 0
try:
    while count < 2000:
        if os.fork() == 0: time.sleep(30); os._exit(0)
        count += 1
except OSError: held(count)
escaped(count)`,
  },
  {
    name: 'starts threads without end',
    limit: 'pids',
    program: `count = 0
threading.stack_size(65536)
try:
    while count < 2000:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        count += 1
except RuntimeError: held(count)
escaped(count)`,
  },
  {
    name: 'takes all memory',
    limit: 'memory',
    ends: 'memory',
    program: 'all = []\nwhile True: all.append(b"x" * 2 ** 20)',
  },
  {
    name: 'takes all memory in many processes',
    limit: 'memory',
    program: `for _ in range(8):
    if os.fork() == 0:
        mine = bytearray(os.urandom(2 ** 20) * 16)
        time.sleep(30)
        os._exit(0)
_, status = os.wait()
if os.WIFSIGNALED(status): held(os.WTERMSIG(status))`,
    ends: 'memory',
  },
  {
    name: 'fills the scratch space',
    limit: 'tmp',
    program: `def fill(folder):
    for index in range(64):
        with open(folder + "/%d" % index, "wb") as file: file.write(bytes(2 ** 20))
refused(lambda: fill("/tmp"))`,
  },
  {
    name: 'makes one large file',
    limit: 'fileSize',
    policy: { tmpBytes: 4 * 2 ** 20 },
    program:
      'refused(lambda: open("/tmp/large", "wb").truncate(2 ** 40), lambda: os.truncate("/tmp/large", 8 * 2 ** 20))',
  },
  {
    name: 'makes empty files without end',
    limit: 'memory',
    policy: { wallMs: 600_000 },
    program: `count = 0
try:
    while count < 1000000:
        os.close(os.open("/tmp/%d" % count, os.O_CREAT | os.O_WRONLY))
        count += 1
except OSError: held(count)
escaped(count)`,
    ends: 'memory',
  },
  {
    name: 'opens files without end',
    limit: 'isolation',
    program: `files = []
try:
    while len(files) < 5000: files.append(os.open("/dev/null", os.O_RDONLY))
except OSError: held(len(files))
escaped(len(files))`,
  },
  { name: 'floods its output', limit: 'output', ends: 'output', program: 'while True: os.write(1, b"x" * 65536)' },
  {
    name: 'floods its error output',
    limit: 'output',
    ends: 'output',
    program: 'while True: os.write(2, b"x" * 65536)',
  },
  { name: 'never ends', limit: 'wall', ends: 'timeout', policy: { wallMs: 500 }, program: 'while True: pass' },
  {
    name: 'never ends, and ignores signals',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 500 },
    program: `for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(60)`,
  },
];

export interface EscapeFixture extends AsyncDisposable {
  /** Of kind `python`, unless it has a way of its own to run Python. */
  readonly runtime: Pick<Runtime, 'kind' | 'run'>;
  readonly trees: MemoryTrees;
  /** A way to run the Python program `main.py` of a package that runs as another kind. */
  readonly wrap?: {
    /** What the package needs beside the program. */
    readonly files: Readonly<Record<string, TreeContent>>;
    readonly entry: string;
    /** What the interpreter takes of the memory of the program. */
    readonly memoryBytes: number;
  };
  /** What the owner granted to the attacks beside: it must not be a way to anything else. */
  readonly granted?: Pick<SandboxPolicy, 'connect' | 'folders'>;
  grant?(layer: Digest): Promise<void>;
}

/** What a hostile program is told of the host, so that it knows what to look for. */
export interface HostileView {
  /** Readable by everybody; it holds the secret, as does the environment of the node. */
  readonly file: string;
  readonly folder: string;
  readonly secret: string;
  /** Where something listens: by TCP, and by sockets with and without a file. */
  readonly port: number;
  readonly abstract: string;
  readonly socket: string;
  /** The node, its parent, and a process that has to outlive all attacks. */
  readonly pids: readonly number[];
}

export async function prepareHost(stack: AsyncDisposableStack): Promise<HostileView> {
  const secret = `secret-${process.pid}-${Math.random()}`;
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-host-'));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const file = path.join(folder, 'file');
  await writeFile(file, secret, { mode: 0o644 });
  process.env['HYPERMESH_TEST_SECRET'] = secret;
  stack.defer(() => void delete process.env['HYPERMESH_TEST_SECRET']);
  const listen = async (address: Parameters<ReturnType<typeof createServer>['listen']>[0]) => {
    const server = createServer((socket) => socket.destroy());
    server.listen(address);
    await once(server, 'listening');
    stack.defer(() => void server.close());
    return server;
  };
  const abstract = `hypermesh-test-${process.pid}`;
  const tcp = await listen({ host: '127.0.0.1', port: 0 });
  await listen({ path: path.join(folder, 'socket') });
  await listen({ path: `\0${abstract}` });
  const victim = spawn('sleep', ['120'], { stdio: 'ignore' });
  stack.defer(() => {
    assert.equal(victim.signalCode, null, 'a process of the host was ended');
    victim.kill('SIGKILL');
  });
  const pids = [process.pid, process.ppid, victim.pid!];
  const { port } = tcp.address() as AddressInfo;
  return { file, folder, secret, port, abstract, socket: path.join(folder, 'socket'), pids };
}

/** Every attack, each with the limit that has to stop it; `skip` says why this machine cannot run programs at all. */
export function testEscapes(
  name: string,
  make: () => Promise<EscapeFixture>,
  { skip = false, limits }: { readonly skip?: string | false; readonly limits?: readonly string[] } = {},
): void {
  describe(`escapes from ${name}`, { skip, concurrency: 2 }, () => {
    const stack = new AsyncDisposableStack();
    let fixture: EscapeFixture;
    let host: HostileView;

    before(async () => {
      host = await prepareHost(stack);
      fixture = stack.use(await make());
    });
    after(() => stack[Symbol.asyncDispose]());

    for (const attack of ATTACKS.filter((one) => limits === undefined || limits.includes(one.limit))) {
      it(`${attack.name}: stopped by ${attack.limit}`, async () => {
        const { wrap } = fixture;
        const layer = fixture.trees.add({
          ...wrap?.files,
          'main.py': Buffer.from(`${PRELUDE}\n${attack.program}\n`),
          link: { link: host.file },
        });
        const request = {
          kind: fixture.runtime.kind,
          layer,
          entry: wrap?.entry ?? 'main.py',
          args: [],
          input: host as never,
          policy: {
            ...SMALL_POLICY,
            memoryBytes: SMALL_POLICY.memoryBytes + (wrap?.memoryBytes ?? 0),
            ...fixture.granted,
            ...attack.policy,
          },
          subject: { package: layer, ref: 'test/attack@1.0.0' },
        };
        await fixture.grant?.(layer);
        if (attack.isTwice) await fixture.runtime.run(request);
        const result = await fixture.runtime.run(request);
        const said = `${result.termination}, ${result.exitCode}: ${result.text} ${result.stderr}`;
        if (attack.ends === undefined || result.termination !== attack.ends)
          assert.match(result.text ?? '', /^held/, said);
        assert.ok(result.enforcedBy[attack.limit], `enforcedBy.${attack.limit}`);
      });
    }
  });
}
