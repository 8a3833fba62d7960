import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Json } from '../base/json.ts';
import type { RunResult, Runtime, SandboxPolicy, Termination } from '../capabilities/vm.ts';
import { type HostileView, prepareHost } from './escape-battery.ts';
import { type MemoryTrees, SMALL_POLICY } from './runtime-conformance.ts';

/**
 * The attacks of the battery in Julia. Starting Julia takes a second: what does not end its process runs with others in one, each as an
 * expression over `host` that gives `held()` or `escaped(what)`.
 */
const PRELUDE = `
const KEPT = Any[]
const RESULT = reinterpret(Int32, Base._fd(stdout))
address(bytes) = (push!(KEPT, bytes); Clong(pointer(bytes)))
text(string) = address(Vector{UInt8}(string * "\\0"))
room(size = 128) = address(zeros(UInt8, size))
checked(result) = result < 0 ? throw(SystemError("call", Libc.errno())) : result
function syscall(x64, arm64, arguments...)
    a, b, c, d, e, f = Clong[arguments...; zeros(Clong, 6 - length(arguments))]
    number = Sys.ARCH === :aarch64 ? arm64 : x64
    checked(ccall(:syscall, Clong, (Clong, Clong, Clong, Clong, Clong, Clong, Clong), number, a, b, c, d, e, f))
end
held() = "held"
escaped(what) = string("escaped: ", what)
"Held when each of these is refused by the system; a mistake of the attack itself is no success of the box."
function refused(works...)
    for (count, work) in enumerate(works)
        try
            return escaped(string(count, " ", repr(work())))
        catch error
            error isa Union{SystemError, Base.IOError} || rethrow()
        end
    end
    held()
end
readfile(name) = open(io -> read(io, 4096), name)
writefile(name) = open(io -> write(io, "x"), name, "w")
socket(family, kind, protocol = 0) = checked(ccall(:socket, Cint, (Cint, Cint, Cint), family, kind, protocol))
function connect(family, kind, bytes)
    file = socket(family, kind)
    checked(ccall(:connect, Cint, (Cint, Ptr{UInt8}, Cuint), file, bytes, length(bytes)))
end
port(number) = UInt8[number >> 8, number & 0xff]
local_name(name) = UInt8[1, 0, codeunits(name)...]
kill(pid, signal) = checked(ccall(:kill, Cint, (Cint, Cint), pid, signal))
fork() = checked(ccall(:fork, Cint, ()))
leave(status = 0) = ccall(:_exit, Cvoid, (Cint,), status)
pids() = [parse(Int, name) for name in readdir("/proc") if all(isdigit, name)]
`;

interface Gentle {
  readonly name: string;
  /** The limit, as a key of `enforcedBy`, that has to stop it. */
  readonly limit: string;
  readonly attack: string;
}

const GENTLE: readonly Gentle[] = [
  {
    name: 'finds open descriptors',
    limit: 'isolation',
    // The first one: others leave theirs open. Julia has some of its own: queues of events, copies of its standard streams, pipes to itself, and its own memory.
    attack: `begin
      links = Dict(fd => try readlink("/proc/self/fd/$fd") catch; "" end for fd in parse.(Int, readdir("/proc/self/fd")))
      own = [links[fd] for fd in (0, 1, 2, RESULT)]
      found = filter(links) do (fd, link)
        fd > 2 && !(link in own) && !startswith(link, "anon_inode:") && !startswith(link, "pipe:") && !(link in ("", "/dev/null", "/proc/$(getpid())/mem"))
      end
      isempty(found) ? held() : escaped((found, own))
    end`,
  },
  { name: 'reads a file of the host', limit: 'files', attack: 'refused(() -> readfile(host["file"]))' },
  { name: 'lists the folder of the node', limit: 'files', attack: 'refused(() -> readdir(host["folder"]))' },
  {
    name: 'reads the accounts of the host',
    limit: 'files',
    attack: 'refused([() -> readfile(name) for name in ("/etc/passwd", "/etc/shadow", "/root/.ssh/id_rsa")]...)',
  },
  {
    name: 'goes through /proc to another root',
    limit: 'files',
    attack: `refused([() -> readfile(root * host["file"]) for root in
      ("/proc/self/root", "/proc/1/root", "/proc/self/root/..", "/proc/1/cwd/..", "/proc/self/cwd/../..")]...)`,
  },
  {
    name: 'follows a link that it makes',
    limit: 'files',
    attack: '(symlink(host["file"], "/tmp/link"); refused(() -> readfile("/tmp/link")))',
  },
  {
    name: 'follows a link that its package brings',
    limit: 'files',
    attack: 'refused(() -> readfile("/package/link"))',
  },
  {
    name: 'writes outside /tmp',
    limit: 'files',
    attack: `refused([() -> writefile(name) for name in ("/x", "/usr/x", "/usr/bin/julia", "/etc/x", "/package/main.jl", "/package/x",
      "/packages/x", "/julia/x", "/depot/x", "/dev/x", "/home/x")]...)`,
  },
  {
    name: 'changes its package by mode or name',
    limit: 'files',
    attack: `refused(() -> chmod("/package/main.jl", 0o777), () -> checked(ccall(:rename, Cint, (Cstring, Cstring), "/package/main.jl", "/package/y")),
      () -> rm("/package/main.jl"))`,
  },
  {
    name: 'opens a file by its handle',
    limit: 'syscalls',
    attack: 'refused(() -> syscall(304, 265, -100, room(), 0))',
  },
  {
    name: 'makes a device',
    limit: 'syscalls',
    attack:
      'refused(() -> syscall(259, 33, -100, text("/tmp/disk"), 0o60666, 8 << 8), () -> syscall(259, 33, -100, text("/tmp/memory"), 0o20666, (1 << 8) | 1))',
  },
  {
    name: 'opens devices of the machine',
    limit: 'files',
    attack: `refused([() -> readfile("/dev/" * name) for name in ("mem", "kmsg", "vda", "sda", "kvm", "fuse", "net/tun", "vsock", "loop-control", "tty", "console")]...)`,
  },
  {
    name: 'reads about the kernel',
    limit: 'files',
    attack: `begin
      said = filter(["kcore", "kmsg", "kallsyms", "keys", "config.gz", "cmdline", "modules", "timer_list"]) do name
        try !isempty(readfile("/proc/" * name)) catch; false end
      end
      isempty(said) ? held() : escaped(said)
    end`,
  },
  {
    name: 'writes settings of the kernel',
    limit: 'isolation',
    attack: `refused([() -> writefile(name) for name in
      ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/1/oom_score_adj")]...)`,
  },
  {
    name: 'mounts',
    limit: 'syscalls',
    attack:
      'refused(() -> syscall(165, 40, text("none"), text("/tmp"), text("tmpfs"), 0, 0), () -> syscall(166, 39, text("/tmp"), 2))',
  },
  {
    name: 'mounts by the newer calls',
    limit: 'syscalls',
    attack: `refused(() -> syscall(428, 428, -100, text("/"), 1), () -> syscall(430, 430, text("tmpfs"), 0),
      () -> syscall(429, 429, 0, text(""), -100, text("/tmp"), 4), () -> syscall(442, 442, -100, text("/"), 0, 0, 0))`,
  },
  {
    name: 'makes namespaces',
    limit: 'syscalls',
    attack:
      'refused([() -> syscall(272, 97, flag) for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x2000000, 0x80)]...)',
  },
  {
    name: 'makes a child in a user namespace',
    limit: 'syscalls',
    attack: 'refused(() -> syscall(56, 220, 0x10000000 | 17, 0, 0, 0, 0), () -> syscall(435, 435, room(88), 88))',
  },
  {
    name: 'enters namespaces of others',
    limit: 'syscalls',
    attack: `refused([() -> (file = checked(ccall(:open, Cint, (Cstring, Cint), "/proc/1/ns/" * name, 0)); syscall(308, 268, file, 0))
      for name in ("mnt", "net", "pid", "user")]...)`,
  },
  {
    name: 'changes its root',
    limit: 'syscalls',
    attack: 'refused(() -> syscall(161, 51, text("/tmp")), () -> syscall(155, 41, text("/tmp"), text("/tmp")))',
  },
  {
    name: 'sees processes of the host',
    limit: 'isolation',
    attack: '(seen = filter(pid -> !(pid in (1, getpid())), pids()); isempty(seen) ? held() : escaped(seen))',
  },
  {
    name: 'signals processes of the host',
    limit: 'isolation',
    attack: 'refused([() -> kill(pid, 9) for pid in host["pids"] if !(pid in (1, getpid()))]...)',
  },
  {
    name: 'signals the first process of its box',
    limit: 'isolation',
    attack: '(foreach(signal -> ccall(:kill, Cint, (Cint, Cint), 1, signal), (15, 19, 9)); sleep(0.05); held())',
  },
  {
    name: 'traces and reads processes',
    limit: 'syscalls',
    attack: `refused(() -> syscall(101, 117, 16, 1, 0, 0), () -> syscall(101, 117, 0, 0, 0, 0), () -> syscall(310, 270, 1, 0, 0, 0, 0, 0),
      () -> syscall(438, 438, 0, 0, 0))`,
  },
  {
    name: 'connects to the host by TCP',
    limit: 'network',
    attack: 'refused(() -> connect(2, 1, UInt8[2, 0, port(host["port"])..., 127, 0, 0, 1, zeros(UInt8, 8)...]))',
  },
  {
    name: 'connects by IPv6',
    limit: 'network',
    attack: 'refused(() -> connect(10, 1, UInt8[10, 0, port(host["port"])..., zeros(UInt8, 19)..., 1, 0, 0, 0, 0]))',
  },
  {
    name: 'sends datagrams',
    limit: 'network',
    attack: 'refused(() -> connect(2, 2, UInt8[2, 0, port(53)..., 127, 0, 0, 1, zeros(UInt8, 8)...]))',
  },
  {
    name: 'opens raw and packet sockets',
    limit: 'network',
    attack: 'refused(() -> socket(2, 3, 1), () -> socket(17, 3, 768))',
  },
  { name: 'talks to the hypervisor by VSOCK', limit: 'network', attack: 'refused(() -> socket(40, 1))' },
  {
    name: 'opens kernel sockets: NETLINK, ALG, Bluetooth',
    limit: 'network',
    attack: 'refused([() -> socket(family, kind) for family in (16, 38, 31) for kind in (3, 5)]...)',
  },
  {
    name: 'connects to an abstract socket of the host',
    limit: 'network',
    attack: 'refused(() -> connect(1, 1, local_name("\\0" * host["abstract"])))',
  },
  {
    name: 'connects to a socket file of the host',
    limit: 'files',
    attack: 'refused(() -> connect(1, 1, local_name(host["socket"] * "\\0")))',
  },
  {
    name: 'finds a network interface',
    limit: 'network',
    attack: `(names = [strip(split(line, ":")[1]) for line in readlines("/proc/net/dev") if occursin(":", line)];
      issubset(names, ["lo"]) ? held() : escaped(names))`,
  },
  {
    name: 'uses the key rings',
    limit: 'syscalls',
    attack: `refused(() -> syscall(250, 219, 0, -3, 1), () -> syscall(248, 217, text("user"), text("k"), text("v"), 1, -3),
      () -> syscall(249, 218, text("user"), text("k"), 0, -3))`,
  },
  { name: 'uses io_uring', limit: 'syscalls', attack: 'refused(() -> syscall(425, 425, 8, room()))' },
  {
    name: 'loads programs into the kernel',
    limit: 'syscalls',
    attack: `refused(() -> syscall(321, 280, 0, room(), 128), () -> syscall(175, 105, text(""), 0, text("")), () -> syscall(246, 104, 0, 0, 0, 0),
      () -> syscall(298, 241, room(), 0, -1, -1, 0))`,
  },
  {
    name: 'uses userfaultfd and anonymous files',
    limit: 'syscalls',
    attack: 'refused(() -> syscall(323, 282, 1), () -> syscall(319, 279, text("x"), 0), () -> syscall(447, 447, 0))',
  },
  {
    name: 'administers the machine',
    limit: 'syscalls',
    attack: `refused(() -> syscall(169, 142, 0xfee1dead, 672274793, 0, 0), () -> syscall(167, 224, text("/tmp/x"), 0), () -> syscall(170, 161, text("x"), 1),
      () -> syscall(227, 112, 0, room()), () -> syscall(103, 116, 3, 0, 0))`,
  },
  {
    name: 'becomes root',
    limit: 'isolation',
    attack: `refused(() -> checked(ccall(:setuid, Cint, (Cuint,), 0)), () -> checked(ccall(:setgid, Cint, (Cuint,), 0)),
      () -> checked(ccall(:setgroups, Cint, (Csize_t, Ptr{Cuint}), 1, Cuint[0])), () -> checked(ccall(:setresuid, Cint, (Cuint, Cuint, Cuint), 0, 0, 0)))`,
  },
  {
    name: 'gains rights from a file',
    limit: 'isolation',
    attack: `begin
      status = Dict(split(line, ":"; limit = 2) for line in readlines("/proc/self/status"))
      left = filter(name -> parse(UInt64, strip(status[name]); base = 16) != 0, ["CapPrm", "CapEff", "CapBnd", "CapAmb"])
      isempty(left) && strip(status["NoNewPrivs"]) == "1" ? held() : escaped(left)
    end`,
  },
  {
    name: 'raises its own limits',
    limit: 'isolation',
    attack: `refused([function ()
        limits = zeros(UInt64, 2)
        checked(ccall(:getrlimit, Cint, (Cint, Ptr{UInt64}), which, limits))
        checked(ccall(:setrlimit, Cint, (Cint, Ptr{UInt64}), which, limits .+ 1))
      end for which in (0, 1, 6, 7)]...)`,
  },
  {
    name: 'takes more than its turn: priority, real time, processors',
    limit: 'isolation',
    attack: `refused(() -> checked(ccall(:setpriority, Cint, (Cint, Cuint, Cint), 0, 0, -20)), () -> syscall(203, 122, 0, 8, room()),
      () -> syscall(144, 119, 0, 1, room()))`,
  },
  {
    name: 'types into a terminal',
    limit: 'syscalls',
    attack: `(file = checked(ccall(:open, Cint, (Cstring, Cint), "/dev/ptmx", 2));
      refused(() -> syscall(16, 29, file, 0x5412, text("x")), () -> syscall(16, 29, file, 0x541c, text("x")), () -> readfile("/dev/tty")))`,
  },
  {
    name: 'turns off the randomness of addresses',
    limit: 'syscalls',
    attack: 'refused(() -> syscall(135, 92, 0x40000))',
  },
  {
    name: 'finds secrets in environments',
    limit: 'isolation',
    attack: `begin
      found = filter(pids()) do pid
        try occursin(host["secret"], String(readfile("/proc/$pid/environ"))) catch; false end
      end
      isempty(found) && !any(value -> occursin(host["secret"], value), values(ENV)) ? held() : escaped(found)
    end`,
  },
  {
    name: 'opens files without end',
    limit: 'isolation',
    attack: `begin
      files = Cint[]
      while length(files) < 5000
        file = ccall(:open, Cint, (Cstring, Cint), "/dev/null", 0)
        file < 0 && break
        push!(files, file)
      end
      foreach(file -> ccall(:close, Cint, (Cint,), file), files)
      length(files) < 5000 ? held() : escaped(length(files))
    end`,
  },
  {
    name: 'fills the scratch space',
    limit: 'tmp',
    // What does not fit is lost without a word.
    attack: `begin
      names = ["/tmp/$index" for index in 1:64]
      foreach(name -> write(name, zeros(UInt8, 2^20)), names)
      size = sum(filesize, names)
      foreach(rm, names)
      size <= 2^20 ? held() : escaped(size)
    end`,
  },
];

interface Rough {
  readonly name: string;
  readonly limit: string;
  readonly program: string;
  readonly policy?: Partial<SandboxPolicy>;
  /** How the run ends when the limit ends all of it. */
  readonly ends?: Termination;
  /** The second time it looks for what the first time left. */
  readonly isTwice?: true;
}

const ROUGH: readonly Rough[] = [
  {
    name: 'leaves files for the next run',
    limit: 'tmp',
    isTwice: true,
    program: `main(host) = (places = ["/tmp/left", "/dev/shm/left", "/var/tmp/left", "/run/left", "/tmp/depot/left"];
      any(ispath, places) ? escaped(filter(ispath, places)) : (foreach(place -> try mkpath(dirname(place)); writefile(place) catch end, places); held()))`,
  },
  {
    name: 'leaves changes of its code for the next run',
    limit: 'isolation',
    isTwice: true,
    program: `calls = 0
      main(host) = (global calls += 1; isdefined(Base, :left_here) ? escaped(calls) : (Core.eval(Base, :(left_here = 1)); calls == 1 ? held() : escaped(calls)))`,
  },
  {
    name: 'leaves grandchildren that hold its output',
    limit: 'wall',
    // Where a watchdog counts, it counts what they share once for each.
    policy: { memoryBytes: 2 ** 29 },
    program: `main(host) = (fork() == 0 && (ccall(:setsid, Cint, ()); fork() == 0 && ccall(:sleep, Cuint, (Cuint,), 60); leave()); held())`,
  },
  {
    name: 'takes its time to end',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 4_000 },
    program: 'atexit(() -> while true end)\nmain(host) = held()',
  },
  {
    name: 'forks without end',
    limit: 'pids',
    policy: { memoryBytes: 2 ** 29 },
    ends: 'memory',
    program: `function main(host)
        for count in 0:2000
          child = ccall(:fork, Cint, ())
          child < 0 && return held()
          child == 0 && (ccall(:sleep, Cuint, (Cuint,), 30); leave())
        end
        escaped(2000)
      end`,
  },
  {
    name: 'takes all memory in many processes',
    limit: 'memory',
    ends: 'memory',
    program: `function main(host)
        for _ in 1:8
          fork() == 0 && (mine = rand(UInt8, 2^26); ccall(:sleep, Cuint, (Cuint,), 30); leave(sum(mine) > 0 ? 0 : 1))
        end
        status = Ref{Cint}(0)
        ccall(:wait, Cint, (Ptr{Cint},), status)
        status[] & 0x7f == 9 ? held() : escaped(status[])
      end`,
  },
  {
    name: 'takes all memory',
    limit: 'memory',
    ends: 'memory',
    program: 'all = Any[]; while true; push!(all, ones(UInt8, 2^20)); end',
  },
  {
    name: 'makes one large file',
    limit: 'fileSize',
    ends: 'disk',
    program: 'main(host) = refused(() -> open(io -> truncate(io, 2^40), "/tmp/large", "w"))',
  },
  {
    name: 'makes empty files without end',
    limit: 'memory',
    ends: 'memory',
    policy: { wallMs: 600_000 },
    program: `main(host) = refused(() -> foreach(index -> close(open("/tmp/$index", "w")), 1:1_000_000))`,
  },
  { name: 'floods its output', limit: 'output', ends: 'output', program: 'while true; print("x"^65536); end' },
  {
    name: 'floods its error output',
    limit: 'output',
    ends: 'output',
    program: 'while true; print(stderr, "x"^65536); end',
  },
  {
    name: 'never ends, and ignores signals',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 2_000 },
    program: `main(host) = (foreach(number -> ccall(:signal, Ptr{Cvoid}, (Cint, Ptr{Cvoid}), number, Ptr{Cvoid}(1)), 1:64); while true end)`,
  },
];

export interface JuliaEscapeFixture extends AsyncDisposable {
  readonly runtime: Runtime;
  readonly trees: MemoryTrees;
  /** Resolves when the next run of the same program waits for its input, where programs are started ahead. */
  settled(): Promise<void>;
}

export function testJuliaEscapes(
  name: string,
  make: () => Promise<JuliaEscapeFixture>,
  { skip = false, limits }: { readonly skip?: string | false; readonly limits?: readonly string[] } = {},
): void {
  const chosen = <T extends { readonly limit: string }>(attacks: readonly T[]) =>
    attacks.filter(({ limit }) => limits === undefined || limits.includes(limit));
  describe(`escapes from ${name}`, { skip, concurrency: 2 }, () => {
    const stack = new AsyncDisposableStack();
    let fixture: JuliaEscapeFixture;
    let host: HostileView;
    let together: RunResult;

    const run = (program: string, policy: Partial<SandboxPolicy> = {}, isTwice = false) => {
      const link = { link: host.file };
      const layer = fixture.trees.add({ 'main.jl': Buffer.from(`${PRELUDE}\n${program}\n`), link });
      const request = {
        ...({ kind: 'julia', layer, entry: 'main.jl', args: [], input: host as unknown as Json } as const),
        policy: { ...SMALL_POLICY, ...policy },
      };
      const again = () => fixture.settled().then(() => fixture.runtime.run(request));
      return isTwice ? fixture.runtime.run(request).then(again) : fixture.runtime.run(request);
    };

    before(async () => {
      host = await prepareHost(stack);
      fixture = stack.use(await make());
      const all = chosen(GENTLE).map(({ name: of, attack }) => `${JSON.stringify(of)} => (host -> ${attack})`);
      together = await run(
        `const ATTACKS = [${all.join(',\n')}]\nmain(host) = Dict(name => try attack(host) catch error; sprint(showerror, error) end for (name, attack) in ATTACKS)`,
        // All of them in one process; a watchdog counts what it shares with the image, too.
        { outputBytes: 2 ** 20, memoryBytes: 2 ** 27 },
      );
    });
    after(() => stack[Symbol.asyncDispose]());

    for (const { name: of, limit } of chosen(GENTLE)) {
      it(`${of}: stopped by ${limit}`, () => {
        const said = (together.output as Readonly<Record<string, Json>> | null)?.[of];
        assert.equal(said, 'held', `${together.termination} ${together.reason ?? ''} ${together.stderr}`);
        assert.ok(together.enforcedBy[limit], `enforcedBy.${limit}`);
      });
    }
    for (const { name: of, limit, program, policy, ends, isTwice } of chosen(ROUGH)) {
      it(`${of}: stopped by ${limit}`, async () => {
        const result = await run(program, policy, isTwice);
        const said = `${result.termination}, ${result.exitCode}: ${result.text} ${result.stderr}`;
        if (ends === undefined || result.termination !== ends) assert.equal(result.output, 'held', said);
        assert.ok(result.enforcedBy[limit], `enforcedBy.${limit}`);
      });
    }
  });
}
