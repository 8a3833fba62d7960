import { existsSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fromHex } from '../../../base/bytes.ts';
import type { BoxExit } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { type Accelerator, EMULATOR_BYTES, EMULATOR_PIDS, type Emulator, machineArguments } from './emulator.ts';

export interface AcceleratorStatus {
  /** Null when no machine can be made at all. */
  readonly accelerator: Accelerator | null;
  /** Why it is not a better one. */
  readonly reason: string | null;
}

export const KVM = '/dev/kvm';

/**
 * A guest of 206 bytes as the firmware of a machine: it goes from real mode through protected mode to 64 bits with paging, then
 * writes and reads memory ten million times, and ends the machine with {@link TINY_STATUS}. A processor does that in a hundredth
 * of a second, emulation in a quarter; what only seems to run guests takes minutes.
 */
const TINY_CODE = fromHex(
  [
    'fa2e0f0116c8000f20c00c010f22c066ea17000f000800', // cli; lgdt; cr0 |= 1; far jump
    '66b810008ed88ec08ed0bc0080000031c0bf00100000b9000c0000f3ab', // segments, stack; clears the tables at 0x1000
    'c7050010000003200000c7050020000003300000c7050030000083000000', // one page of 2 MiB
    'b8001000000f22d80f20e083c8200f22e0', // cr3, cr4 |= PAE
    'b9800000c00f320d000100000f300f20c00d010000800f22c0ea83000f001800', // EFER |= LME, cr0 |= PG, far jump
    'b98096980048890c2500700000488b04250070000048ffc975eb', // the loop
    '66ba0105b02aeef4ebfd90', // out 0x501, 0x2a; hlt
    '0000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00', // segments: code and data of 32 bits, code of 64
    '1f00a8000f00', // their address
  ].join(''),
);
/** Where the processor begins: a jump to the first byte. */
const TINY_RESET = fromHex('e90d00');
const TINY_BYTES = 64 * 1024;
const TINY_STATUS = 2 * 0x2a + 1;
const TINY_MIB = 16;
const TCG_MS = 20_000;
const KVM_MS = 3_000;

/** Runs the tiny guest in a box: on the processor itself where that works, else emulated. `folder`: ours alone, inside that of the sandbox. */
export async function probeAccelerator(
  sandbox: ProcessSandbox,
  emulator: Emulator,
  folder: string,
): Promise<AcceleratorStatus> {
  await mkdir(folder, { recursive: true });
  await chmod(folder, 0o755);
  const firmware = new Uint8Array(TINY_BYTES);
  firmware.set(TINY_CODE);
  firmware.set(TINY_RESET, TINY_BYTES - 16);
  const file = join(folder, 'firmware');
  await writeFile(file, firmware);
  await chmod(file, 0o644);

  const tcg = await runTiny(sandbox, emulator, folder, 'tcg');
  if (tcg !== null) return { accelerator: null, reason: `A test machine did not run: ${tcg}.` };
  if (!existsSync(KVM))
    return {
      accelerator: 'tcg',
      reason: `${KVM} is missing (load kvm_intel or kvm_amd; in a virtual computer, let its host allow nested virtualisation)`,
    };
  const kvm = await runTiny(sandbox, emulator, folder, 'kvm').catch((error: Error) => error.message);
  return kvm === null ? { accelerator: 'kvm', reason: null } : { accelerator: 'tcg', reason: kvm };
}

/** Null when the guest ran. */
async function runTiny(
  sandbox: ProcessSandbox,
  emulator: Emulator,
  folder: string,
  accelerator: Accelerator,
): Promise<string | null> {
  const wallMs = accelerator === 'kvm' ? KVM_MS : TCG_MS;
  const box = await sandbox.start({
    command: [
      emulator.path,
      ...machineArguments(accelerator, TINY_MIB, 1),
      ...['-bios', '/snapshot/firmware', '-device', 'isa-debug-exit,iobase=0x501,iosize=1'],
    ],
    root: emulator.root,
    mounts: [{ source: folder, at: '/snapshot' }],
    environment: { PATH: '/usr/bin:/bin' },
    ...(accelerator === 'kvm' ? { devices: [KVM] } : {}),
    limits: {
      memoryBytes: EMULATOR_BYTES,
      cpuCores: 1,
      wallMs,
      pids: EMULATOR_PIDS,
      tmpBytes: 0,
      fileBytes: 1,
      outputBytes: 64 * 1024,
    },
  });
  box.stdin.end();
  box.control.resume();
  const [, complaint, exit] = await Promise.all([text(box.stdout), text(box.stderr), box.exit]);
  return judge(exit, complaint, wallMs);
}

function judge({ termination, exitCode, reason }: BoxExit, complaint: string, wallMs: number): string | null {
  if (termination === 'exit' && exitCode === TINY_STATUS) return null;
  if (termination === 'timeout')
    return `a test guest did not end in ${wallMs} ms${wallMs === KVM_MS ? ', so the processor does not really run it (in a virtual computer, let its host allow nested virtualisation)' : ''}`;
  if (/permission denied/i.test(complaint))
    return `the user of the node may not open ${KVM} (\`usermod -aG kvm USER\`; if the node runs as root, \`chgrp kvm ${KVM} && chmod 660 ${KVM}\`)`;
  const said = complaint.trim().split('\n').at(-1) ?? '';
  return said === '' ? (reason ?? `the emulator ended with status ${exitCode}`) : said.slice(0, 300);
}
