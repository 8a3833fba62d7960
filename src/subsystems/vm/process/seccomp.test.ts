import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { assembleFilter, type FilterMachine } from './seccomp.ts';

const ALLOW = 0x7fff0000;
const KILL = 0x80000000;
const errno = (number: number) => 0x00050000 + number;

/** Runs the program as the kernel would, on one call. */
function decide(machine: FilterMachine, number: number, args: readonly bigint[] = [], arch?: number): number {
  const program = new DataView(assembleFilter(machine).buffer);
  const data = new DataView(new ArrayBuffer(64));
  data.setUint32(0, number, true);
  data.setUint32(4, arch ?? (machine === 'x64' ? 0xc000003e : 0xc00000b7), true);
  for (const [index, argument] of args.entries()) data.setBigUint64(16 + 8 * index, argument, true);
  let register = 0;
  for (let at = 0; at * 8 < program.byteLength; at++) {
    const code = program.getUint16(at * 8, true);
    const k = program.getUint32(at * 8 + 4, true);
    const jump = (isTrue: boolean) => program.getUint8(at * 8 + (isTrue ? 2 : 3));
    if (code === 0x20) register = data.getUint32(k, true);
    else if (code === 0x15) at += jump(register === k);
    else if (code === 0x35) at += jump(register >= k);
    else if (code === 0x45) at += jump((register & k) !== 0);
    else return k;
  }
  throw new Error('The program has no end.');
}

describe('assembleFilter()', () => {
  it('allows what is listed and refuses the rest, on both machines', () => {
    const cases: [machine: FilterMachine, number: number, action: number][] = [
      ['x64', 0, ALLOW], // read
      ['x64', 59, ALLOW], // execve
      ['x64', 101, errno(1)], // ptrace
      ['x64', 165, errno(1)], // mount
      ['x64', 250, errno(1)], // keyctl
      ['x64', 272, errno(1)], // unshare
      ['x64', 319, errno(1)], // memfd_create
      ['x64', 321, errno(1)], // bpf
      ['x64', 425, errno(38)], // io_uring_setup
      ['x64', 428, errno(38)], // open_tree
      ['x64', 435, errno(38)], // clone3
      ['x64', 9_999, errno(38)],
      ['x64', 0x40000000, errno(38)],
      ['x64', 0xffffffff, errno(38)],
      ['arm64', 63, ALLOW], // read
      ['arm64', 117, errno(1)], // ptrace
      ['arm64', 40, errno(1)], // mount
      ['arm64', 97, errno(1)], // unshare
    ];
    for (const [machine, number, action] of cases)
      assert.equal(decide(machine, number), action, `${machine} ${number}`);
  });

  it('kills on another calling convention', () => {
    assert.equal(decide('x64', 0, [], 0x40000003), KILL);
    assert.equal(decide('arm64', 0, [], 0xc000003e), KILL);
  });

  it('looks at the low half of the arguments where the kernel does', () => {
    const high = 1n << 40n;
    assert.equal(decide('x64', 41, [1n]), ALLOW);
    for (const family of [2n, 10n, 16n, 17n, 38n, 40n]) assert.equal(decide('x64', 41, [family]), errno(97));
    assert.equal(decide('x64', 56, [17n]), ALLOW);
    for (const flag of [0x20000n, 0x10000000n, 0x40000000n, 0x2000000n])
      assert.equal(decide('x64', 56, [flag | 17n]), errno(1));
    assert.equal(decide('x64', 16, [0n, 0x5401n]), ALLOW);
    for (const command of [0x5412n, 0x541cn, 0x5423n, 0x5412n | high])
      assert.equal(decide('x64', 16, [0n, command]), errno(1));
    assert.equal(decide('x64', 135, [0xffffffffn]), ALLOW);
    assert.equal(decide('x64', 135, [0x40000n]), errno(1));
  });

  it('knows the numbers of both machines: what both have is answered alike', (t) => {
    const files = ['/usr/include/x86_64-linux-gnu/asm/unistd_64.h', '/usr/include/asm-generic/unistd.h'];
    if (!files.every(existsSync)) return t.skip('the headers of the kernel for x64 are not installed');
    const [x64, arm64] = files.map((file) => {
      const numbers = new Map<string, number>();
      for (const [, name, number] of readFileSync(file, 'utf8').matchAll(/^#define __NR(?:3264)?_(\w+)\s+(\d+)$/gm))
        if (!numbers.has(name!)) numbers.set(name!, Number(number));
      return numbers;
    });
    const named = (name: string) => arm64!.get(name) ?? arm64!.get(name.replace(/^newfstatat$/, 'fstatat'));
    let compared = 0;
    for (const [name, number] of x64!) {
      const other = named(name);
      if (other === undefined) continue;
      compared += 1;
      assert.equal(decide('arm64', other), decide('x64', number), name);
    }
    assert.ok(compared > 250, String(compared));
    const bad = [
      'ptrace',
      'mount',
      'umount2',
      'pivot_root',
      'chroot',
      'unshare',
      'setns',
      'keyctl',
      'add_key',
      'request_key',
      'bpf',
    ];
    bad.push(
      'perf_event_open',
      'userfaultfd',
      'memfd_create',
      'mknodat',
      'open_by_handle_at',
      'init_module',
      'kexec_load',
      'reboot',
    );
    bad.push(
      'process_vm_readv',
      'process_vm_writev',
      'kcmp',
      'quotactl',
      'swapon',
      'acct',
      'settimeofday',
      'adjtimex',
      'syslog',
    );
    bad.push('setuid', 'setgid', 'setgroups', 'setresuid', 'setresgid', 'capset', 'sethostname', 'fchown', 'fchownat');
    for (const name of bad) {
      assert.notEqual(decide('x64', x64!.get(name)!), ALLOW, `x64 ${name}`);
      assert.notEqual(decide('arm64', named(name)!), ALLOW, `arm64 ${name}`);
    }
  });
});
