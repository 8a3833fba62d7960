import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import type { SandboxPolicy, Termination } from '../../../capabilities/vm.ts';
import { buildGuest, type Guest, machineFiles } from '../../../testing/guest.ts';
import { MemoryTrees, SMALL_POLICY, testRuntime } from '../../../testing/runtime-conformance.ts';
import { until } from '../../../testing/until.ts';
import { openExecution } from '../execution.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { visible } from '../output.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Standby } from '../process/standby.ts';
import { Trees } from '../process/trees.ts';
import { MachineRuntime } from './runtime.ts';

const SCRIPTS = {
  echo: 'exec cat',
  sh: 'shift; eval "$1"',
  seven: 'exit 7',
  spin: 'while :; do :; done',
  flood: 'exec yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx',
  complain: `printf '\\033[31mred' >&2`,
  read: 'exec cat "$1"',
  hoard: 'exec tail -n 1 /dev/zero',
  environment: 'cat /proc/$$/environ',
};
/** Ports and files like the guest of the template, but what it does after that is the argument of the run. */
const HOSTILE = `
echo 'ready 1' >&3
set --
/bin/wake <&3
while read -r word first second <&3; do
  case "$word" in
    argument) value=$(printf '%s' "$first" | /bin/base64 -d) ;;
    start) break ;;
  esac
done
PATH=/bin
eval "$value"
sleep 3600`;
const POLICY = { memoryBytes: 96 * 2 ** 20, tmpBytes: 2 ** 20 };

const guest = await buildGuest(SCRIPTS, (init) => ({
  hostile: init.replace(/\n# What becomes the program[\s\S]*/, HOSTILE),
}));

async function open(directory: string, assets: MemoryTrees) {
  await using stack = new AsyncDisposableStack();
  const sandbox = stack.use(await openProcessSandbox({ directory }));
  const trees = await Trees.open(
    { assets },
    { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 28, filesMax: 1_000 },
  );
  const standby = new Standby();
  const runtime = new MachineRuntime(
    { assets, sandbox, trees, standby },
    { limits: DEFAULT_LIMITS, directory: path.join(directory, 'machines'), images: path.join(directory, 'emulators') },
  );
  const owned = stack.move();
  return { runtime, standby, [Symbol.asyncDispose]: () => owned[Symbol.asyncDispose]() };
}

/** One for all tests of this file: starting a machine for the first time takes seconds. */
const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-machine-'));
const assets = new MemoryTrees();
let opened = await open(directory, assets);
after(async () => {
  await opened[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});
const skip = typeof guest === 'string' ? guest : ((await opened.runtime.probe()).reason ?? false);
const layer =
  typeof guest === 'string'
    ? assets.add({})
    : assets.add({
        ...machineFiles(guest, Object.keys(SCRIPTS)),
        'hostile.json': Buffer.from(
          JSON.stringify({ ...guest.machine, commandLine: `${guest.machine['commandLine']} rdinit=/hostile` }),
        ),
        'broken.json': Buffer.from('no machine'),
      });

testRuntime(
  'vm',
  async () => {
    const programs = Object.fromEntries([...Object.keys(SCRIPTS), 'broken'].map((name) => [name, `${name}.json`]));
    return {
      get runtime() {
        return opened.runtime;
      },
      trees: assets,
      programs: { layer, ...programs } as never,
      policy: POLICY,
      async [Symbol.asyncDispose]() {},
    };
  },
  { skip },
);

function run(entry: string, args: readonly string[], more: Partial<SandboxPolicy> = {}, from = layer) {
  const policy = { ...SMALL_POLICY, ...POLICY, ...more };
  return opened.runtime.run({ kind: 'vm', layer: from, entry, args, input: null, policy });
}

const sh = (script: string, more?: Partial<SandboxPolicy>) => run('sh.json', ['', script], more);

/** What a guest may try, and the limit that has to stop it. */
const ATTACKS: readonly {
  readonly name: string;
  readonly limit: string;
  /** `sh`: a program of the machine; `hostile`: in place of the first program, with the ports in its hands. */
  readonly as: 'sh' | 'hostile';
  readonly script: string;
  readonly ends?: readonly Termination[];
  readonly policy?: Partial<SandboxPolicy>;
}[] = [
  {
    name: 'fills the disk that it may write',
    limit: 'tmp',
    as: 'sh',
    script: `disk=/dev/$(grep -l scratch /sys/block/vd*/serial | cut -d/ -f4)
      dd if=/dev/zero of=$disk bs=64k 2>/tmp/why; grep -q "No space" /tmp/why && echo '"held"'`,
  },
  {
    name: 'writes the disks of its package',
    limit: 'files',
    as: 'sh',
    script: `disk=/dev/$(grep -l files /sys/block/vd*/serial | cut -d/ -f4)
      echo x 2>/dev/null >$disk || echo '"held"'`,
  },
  {
    name: 'looks for a network',
    limit: 'network',
    as: 'sh',
    script: `[ "$(ls /sys/class/net)" = lo ] && ! ls /sys/bus/pci/devices/* 2>/dev/null && echo '"held"'`,
  },
  {
    name: 'forks without end',
    limit: 'memory',
    as: 'sh',
    // The machine runs out of processes or of memory, whichever is first.
    ends: ['exit', 'memory', 'timeout'],
    policy: { wallMs: 10_000 },
    script: 'count=0; while [ $count -lt 20000 ]; do sleep 60 & count=$((count+1)); done 2>/dev/null; echo 2',
  },
  {
    name: 'takes all memory of the machine in many programs',
    limit: 'memory',
    as: 'sh',
    ends: ['memory'],
    policy: { wallMs: 600_000 },
    script: 'for one in 1 2 3; do tail -n 1 /dev/zero & done; wait; exit 1',
  },
  { name: 'floods its log', limit: 'output', as: 'sh', ends: ['output'], script: 'exec yes >&2' },
  { name: 'never answers', limit: 'wall', as: 'hostile', ends: ['timeout'], policy: { wallMs: 1_500 }, script: ':' },
  {
    name: 'prints without end and never answers',
    limit: 'output',
    as: 'hostile',
    ends: ['output'],
    script: 'yes >&5 & yes >&6 & wait',
  },
  { name: 'says words without end', limit: 'isolation', as: 'hostile', ends: ['error'], script: 'yes ready 1 >&3' },
  {
    name: 'says a word without end',
    limit: 'isolation',
    as: 'hostile',
    ends: ['error'],
    script: 'tr "\\\\0" x </dev/zero >&3',
  },
  { name: 'lies about its status', limit: 'isolation', as: 'hostile', ends: ['error'], script: 'echo exit 999 >&3' },
  { name: 'switches itself off', limit: 'isolation', as: 'hostile', ends: ['error'], script: 'reboot -f' },
  {
    name: 'crashes its kernel',
    limit: 'isolation',
    as: 'hostile',
    ends: ['error'],
    script: 'echo c >/proc/sysrq-trigger',
  },
  {
    name: 'goes on after its answer',
    limit: 'wall',
    as: 'hostile',
    ends: ['exit'],
    script: `printf '1\\0' >&5; printf '\\0' >&6; echo exit 0 >&3; sleep 0.3; yes >&5`,
  },
  {
    name: 'answers without the end of what it printed',
    limit: 'wall',
    as: 'hostile',
    ends: ['exit'],
    script: 'printf 1 >&5; echo exit 0 >&3',
  },
];

/**
 * What a guest may look for as root of its machine, on its way to the computer around it: a command that is true when it was held. `$file` in
 * `$folder`, `$port` and `$process` are on that computer.
 */
const PROBES: readonly { readonly name: string; readonly limit: string; readonly held: string }[] = [
  { name: 'reads a file of the host', limit: 'files', held: '! cat "$file"' },
  { name: 'lists the folder of the node', limit: 'files', held: '! ls "$folder"' },
  { name: 'reads the accounts of the host', limit: 'files', held: '! cat /etc/passwd /etc/shadow' },
  { name: 'mounts a folder of the host by 9p', limit: 'files', held: '! mount -t 9p -o trans=virtio host /run' },
  { name: 'mounts a folder of the host by virtiofs', limit: 'files', held: '! mount -t virtiofs host /run' },
  { name: 'mounts a folder of the host by NFS', limit: 'files', held: '! mount -t nfs -o nolock 10.0.2.2:/ /run' },
  {
    name: 'finds disks that are not its own',
    limit: 'files',
    held: '[ "$(echo /sys/block/[!lr]*)" = "/sys/block/vda /sys/block/vdb" ]',
  },
  { name: 'finds partitions of the host', limit: 'files', held: '! grep -E "sd|nvme|xvd|dm-" /proc/partitions' },
  {
    name: 'reads past the end of a disk',
    limit: 'files',
    held: '! dd if=/dev/vda bs=512 skip=$(($(cat /sys/block/vda/size) + 8)) count=1 | grep -q .',
  },
  {
    name: 'writes past the end of the disk that it may write',
    limit: 'tmp',
    held: 'disk=$(grep -l scratch /sys/block/vd*/serial | cut -d/ -f4); ! dd if=/dev/zero of=/dev/$disk bs=512 seek=$(cat /sys/block/$disk/size) count=1 conv=fsync',
  },
  { name: 'connects to the host by TCP', limit: 'network', held: 'ifconfig lo up; ! nc -w 1 127.0.0.1 "$port"' },
  { name: 'connects to the gateway of an emulator', limit: 'network', held: '! nc -w 1 10.0.2.2 "$port"' },
  { name: 'asks for an address', limit: 'network', held: '! udhcpc -n -q -t 1 -T 1' },
  {
    name: 'finds a network device on its bus',
    limit: 'network',
    held: '! grep -lE "0x0001" /sys/bus/virtio/devices/*/device',
  },
  {
    name: 'talks to the hypervisor by VSOCK',
    limit: 'network',
    held: '[ ! -e /dev/vsock ] && ! grep -l 0x0013 /sys/bus/virtio/devices/*/device',
  },
  {
    name: 'finds devices beside its disks and ports',
    limit: 'isolation',
    held: '[ -z "$(cat /sys/bus/virtio/devices/*/device | grep -vE "0x000[23]")" ]',
  },
  { name: 'finds a PCI bus', limit: 'isolation', held: '! ls /sys/bus/pci/devices/*' },
  { name: 'finds USB or a sound card', limit: 'isolation', held: '! ls /sys/bus/usb/devices/* && ! ls /dev/snd' },
  {
    name: 'finds a screen or a keyboard',
    limit: 'isolation',
    held: '! ls /dev/fb0 && ! ls /dev/dri && ! ls /dev/input/*',
  },
  {
    name: 'starts a machine in the machine',
    limit: 'isolation',
    held: '[ ! -e /dev/kvm ]',
  },
  {
    name: 'reads what was handed to the firmware',
    limit: 'isolation',
    held: '! ls /sys/firmware/qemu_fw_cfg/by_name/opt',
  },
  {
    name: 'ends the emulator by its debug port',
    limit: 'isolation',
    held: 'printf "\\0" | dd of=/dev/port bs=1 seek=1281; printf "\\0" | dd of=/dev/port bs=1 seek=244; true',
  },
  {
    name: 'reads memory beyond that of the machine',
    limit: 'memory',
    held: '! dd if=/dev/mem of=/dev/null bs=1048576 skip=4096 count=1',
  },
  { name: 'reads registers of the processor', limit: 'isolation', held: '! cat /dev/cpu/0/msr' },
  { name: 'sees the emulator that runs it', limit: 'isolation', held: '! ps | grep "qemu-syste[m]"' },
  { name: 'signals a process of the host', limit: 'isolation', held: 'kill -9 "$process"; true' },
  {
    name: 'finds paths of the host in how it was started',
    limit: 'isolation',
    held: '! grep -F "$folder" /proc/cmdline /proc/1/environ /proc/mounts',
  },
  { name: 'finds more processors than its share', limit: 'cpu', held: '[ "$(grep -c ^processor /proc/cpuinfo)" = 1 ]' },
  {
    name: 'finds more memory than the machine was given',
    limit: 'memory',
    held: '[ "$(sed -n "s/MemTotal: *\\([0-9]*\\).*/\\1/p" /proc/meminfo)" -le 98304 ]',
  },
  { name: 'sets the clock', limit: 'isolation', held: 'date -s 2001-01-01; hwclock -w; true' },
  {
    name: 'finds ports that are not its own',
    limit: 'isolation',
    held: '! cat /sys/class/virtio-ports/*/name | grep -v "^hypermesh\\.\\(control\\|input\\|output\\|log\\)$"',
  },
];

/** The same means, used on what is there: who sees none of that proves nothing above. */
const MEANS = [
  '! cat /proc/version',
  '! grep -E "vd[ab]" /proc/partitions',
  '! dd if=/dev/vda bs=512 count=1 | grep -q .',
  '! grep -lE "0x0003" /sys/bus/virtio/devices/*/device',
  '! ps | grep "ini[t]"',
  '! { command -v nc && command -v udhcpc && command -v mount && command -v hwclock; }',
  '! mount -t tmpfs none /run',
  '! dd if=/dev/mem of=/dev/null bs=4096 count=1',
  '! cat /sys/class/virtio-ports/*/name | grep -v input',
];

describe('escapes from a virtual machine as its root', { skip }, () => {
  let answers: readonly string[] = [];
  let enforcedBy: Readonly<Record<string, string>> = {};
  before(async () => {
    const file = path.join(directory, 'secret');
    await writeFile(file, 'secret', { mode: 0o644 });
    const listener = createServer().listen(0, '127.0.0.1');
    await once(listener, 'listening');
    const bystander = spawn('sleep', ['600'], { stdio: 'ignore' });
    try {
      const known = `file=${file} folder=${directory} port=${(listener.address() as AddressInfo).port} process=${bystander.pid}`;
      const checks = [...PROBES.map(({ held }) => held), ...MEANS].map(
        (held, index) =>
          `if ( ${held} ) >/dev/null 2>&1 </dev/null; then say ${index} held; else say ${index} escaped; fi`,
      );
      const script = `${known}; say() { [ $1 = 0 ] || printf ,; printf '"%s"' $2; }; printf '['; ${checks.join('\n')}\nprintf ']'`;
      const atMs = Date.now();
      const result = await sh(script, { wallMs: 600_000 });
      assert.deepEqual(
        [result.termination, result.exitCode],
        ['exit', 0],
        `${result.reason} ${result.text} ${result.stderr}`,
      );
      answers = result.output as string[];
      enforcedBy = result.enforcedBy;
      assert.ok(Date.now() >= atMs, 'the clock of the host was set');
      assert.equal(bystander.exitCode ?? bystander.signalCode, null, 'a process of the host was ended');
    } finally {
      listener.close();
      bystander.kill('SIGKILL');
    }
  });
  it('finds with the same means what is there', () => {
    assert.deepEqual(
      answers.slice(PROBES.length),
      MEANS.map(() => 'escaped'),
    );
  });
  for (const [index, { name, limit }] of PROBES.entries())
    it(`${name}: stopped by ${limit}`, () => {
      assert.equal(answers[index], 'held');
      assert.ok(enforcedBy[limit], `enforcedBy.${limit}`);
    });
});

describe('escapes from a virtual machine', { skip }, () => {
  for (const { name, limit, as, script, ends = ['exit'], policy } of ATTACKS) {
    it(`${name}: stopped by ${limit}`, async () => {
      const result = await run(`${as}.json`, ['', script].slice(as === 'sh' ? 0 : 1), policy);
      const said = `${result.termination}, ${result.reason}, ${result.exitCode}: ${result.text} ${result.stderr}`;
      assert.ok(ends.includes(result.termination), said);
      if (result.termination !== 'exit') assert.equal(typeof result.reason, 'string');
      else if (ends.length === 1) assert.ok(result.output === 'held' || result.output === 1, said);
      else assert.notEqual(result.output, 2);
      assert.ok(result.enforcedBy[limit], `enforcedBy.${limit}`);
      assert.ok(result.usage.cpuMs > 0);
      assert.ok(result.usage.peakProcessBytes > 0);
    });
  }
});

describe('runtime vm', { skip }, () => {
  it('passes arguments and an environment of any text', async () => {
    const text = 'a "b" \'c\' $d\n ü \\ ';
    const result = await run('sh.json', ['', 'printf "%s" "$2$word"', text], { environment: { word: text } });
    assert.equal(result.text, visible(text + text));
  });

  it('wakes each machine with the time, and with randomness of its own', async () => {
    const ask = () => sh(`printf '[%s,"%s"]' "$(date +%s)" "$(head -c 16 /dev/urandom | base64)"`);
    const [one, other] = (await Promise.all([ask(), ask()])).map(({ output, stderr, text }) => {
      assert.ok(Array.isArray(output), `${text} ${stderr}`);
      return output as [number, string];
    });
    for (const [seconds] of [one!, other!]) assert.ok(Math.abs(seconds - Date.now() / 1000) < 30, String(seconds));
    assert.notEqual(one![1], other![1]);
  });

  it('goes on ahead of the next run, each time with a machine of its own', async () => {
    for (let turn = 0; turn < 3; turn++) {
      const result = await sh('ls /tmp; echo x >/tmp/left', { wallMs: 599_999 });
      assert.deepEqual([result.termination, result.output], ['exit', null]);
      // On a busy computer it may not come to rest, and is given up.
      const deadline = performance.now() + 20_000;
      while (!opened.standby.status().isSettled && performance.now() < deadline) await pause(50);
    }
  });

  it('keeps what it prints before it is cancelled, and asks it to stop', async () => {
    const controller = new AbortController();
    const running = opened.runtime.run(
      {
        ...{ kind: 'vm', layer, entry: 'sh.json', args: ['', 'echo 1; echo said >&2; sleep 600'], input: null },
        policy: { ...SMALL_POLICY, ...POLICY },
      },
      { signal: controller.signal, onProgress: ({ log }) => void (log?.includes('said') && controller.abort()) },
    );
    const result = await running;
    assert.deepEqual([result.termination, result.output], ['cancelled', 1]);
  });

  it('says why a machine does not become ready', async () => {
    const bad = guest as Guest;
    const files = machineFiles(bad, ['seven']);
    const quick = { ...bad.machine, commandLine: 'console=ttyS0 quiet panic=-1 reboot=t rdinit=/seven' };
    const broken = assets.add({ ...files, 'm.json': Buffer.from(JSON.stringify(quick)) });
    await assert.rejects(run('m.json', [], {}, broken), {
      code: 'program-invalid',
      message: /did not become ready.*Kernel Offset/s,
    });
    const missing = assets.add({ 'm.json': Buffer.from(JSON.stringify({ ...bad.machine })) });
    await assert.rejects(run('m.json', [], {}, missing), { code: 'program-invalid', message: /vmlinuz/ });
  });

  it('leaves no emulator when the node is killed', async () => {
    const own = path.join(directory, 'killed');
    const files = machineFiles(guest as Guest, ['spin']);
    const source = `
      import { readFileSync } from 'node:fs';
      import { openExecution } from ${JSON.stringify(new URL('../index.ts', import.meta.url).href)};
      import { MemoryTrees } from ${JSON.stringify(new URL('../../../testing/runtime-conformance.ts', import.meta.url).href)};
      const trees = new MemoryTrees();
      const files = JSON.parse(readFileSync(0, 'utf8'));
      const layer = trees.add(Object.fromEntries(Object.entries(files).map(([name, text]) => [name, Buffer.from(text, 'base64')])));
      const execution = await openExecution({ assets: trees }, { directory: ${JSON.stringify(own)} });
      const policy = ${JSON.stringify({ ...SMALL_POLICY, ...POLICY, wallMs: 60_000 })};
      const onProgress = () => process.stdout.write('booting');
      execution.run({ kind: 'vm', layer, entry: 'spin.json', args: [], input: null, policy }, { onProgress });`;
    const node = spawn(process.execPath, ['--input-type=module', '--no-warnings', '-e', source], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    node.stdin.end(
      JSON.stringify(
        Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, Buffer.from(bytes).toString('base64')])),
      ),
    );
    await once(node.stdout, 'data');
    const emulators = async () => (await descendantsOf(node.pid!)).filter(({ command }) => /qemu/.test(command));
    await until('an emulator is there', async () => (await emulators()).length > 0);
    const found = await descendantsOf(node.pid!);
    assert.ok(found.some(({ command }) => /qemu/.test(command)));
    node.kill('SIGKILL');
    await once(node, 'exit');
    const isThere = ({ pid }: { pid: number }) => existsSync(`/proc/${pid}`);
    await until('all of them are gone', () => !found.some(isThere));
    // What a killed node leaves is gone when the next one has started.
    await using _next = await openExecution({ assets }, { directory: own });
    const groups = execFileSync('find', ['/sys/fs/cgroup', '-name', `hypermesh-${nameOf(own)}`], { encoding: 'utf8' });
    assert.equal(groups, '');
    assert.deepEqual(
      (await readdir(path.join(own, 'machines'))).filter((name) => /^[0-9a-f]{64}$/.test(name)),
      [],
    );
  });

  it('makes a snapshot anew that is not what it was, and lets go of those of packages that are gone', async () => {
    const folder = path.join(directory, 'machines');
    const kept = async () => (await readdir(folder)).filter((name) => /^[0-9a-f]{64}$/.test(name));
    const first = await kept();
    assert.ok(first.length >= 1);
    await opened[Symbol.asyncDispose]();
    for (const name of first) await writeFile(path.join(folder, name, 'state'), 'damaged');
    opened = await open(directory, assets);
    assert.equal((await run('echo.json', [])).output, null);
    assets.remove(layer);
    await opened[Symbol.asyncDispose]();
    opened = await open(directory, assets);
    await opened.runtime.probe();
    assert.deepEqual(await kept(), []);
  });
});

/** As control groups of a node with this folder are called. */
function nameOf(folder: string): string {
  return createHash('sha256').update(realpathSync(folder)).digest('hex').slice(0, 16);
}

async function descendantsOf(root: number): Promise<{ pid: number; command: string }[]> {
  const all = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const parents = new Map<number, number>();
  for (const pid of all) {
    const status = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
    parents.set(pid, Number(/\) \S (\d+)/.exec(status)?.[1]));
  }
  const isBelow = (pid: number | undefined): boolean =>
    pid !== undefined && pid > 1 && (parents.get(pid) === root || isBelow(parents.get(pid)));
  const below = all.filter((pid) => isBelow(pid));
  return Promise.all(
    below.map(async (pid) => ({ pid, command: await readFile(`/proc/${pid}/comm`, 'latin1').catch(() => '') })),
  );
}
