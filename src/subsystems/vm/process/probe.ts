import { text } from 'node:stream/consumers';
import type { Box, BoxLimits, BoxSpec } from './box.ts';

const MiB = 2 ** 20;
const LIMITS: BoxLimits = {
  memoryBytes: 32 * MiB,
  cpuCores: 1,
  wallMs: 10_000,
  pids: 8,
  tmpBytes: MiB,
  fileBytes: MiB,
  outputBytes: 64 * 1024,
};

/** Each line breaks out in one way, and names it when that worked. `$1` is the folder of the sandbox on the host. */
const BREAKOUT = `
{ echo x > /breakout; } 2>/dev/null && echo 'the root can be written'
{ echo x > /usr/breakout; } 2>/dev/null && echo '/usr can be written'
{ true >> /proc/sys/kernel/core_pattern; } 2>/dev/null && echo 'kernel settings can be written'
[ -e "$1" ] && echo 'files of the node can be seen'
[ -e /etc/shadow ] && echo 'files of the host can be seen'
[ -s /proc/1/environ ] && echo 'the environment of the node can be seen'
grep -q '^Seccomp:[[:space:]]*2$' /proc/self/status || echo 'no filter of system calls is active'
grep -q '^NoNewPrivs:[[:space:]]*1$' /proc/self/status || echo 'privileges can be gained'
grep -q '^CapEff:[[:space:]]*0*$' /proc/self/status || echo 'capabilities are left'
[ "$(grep -c : /proc/net/dev)" -le 1 ] || echo 'network interfaces can be seen'
for fd in /proc/$$/fd/*; do [ "\${fd##*/}" -gt 3 ] && [ "\${fd##*/}" -ne 10 ] && [ -e "$fd" ] && echo "descriptor \${fd##*/} is open"; done
echo held
`;
const FORKS = 'i=0; while [ $i -lt 40 ]; do sleep 9 & i=$((i+1)); done; echo all';

/** Tries to break out of a box; null when everything held. */
export async function checkBox(start: (spec: BoxSpec) => Promise<Box>, directory: string): Promise<string | null> {
  const run = async (command: readonly string[]) => {
    const box = await start({ command, root: 'host', mounts: [], environment: {}, limits: LIMITS });
    box.stdin.end();
    const [printed, complaint, exit] = await Promise.all([text(box.stdout), text(box.stderr), box.exit]);
    return { printed: printed.trim(), complaint: complaint.trim(), exit };
  };
  const quiet = await run(['/bin/sh', '-c', BREAKOUT, 'sh', directory]);
  if (quiet.exit.termination !== 'exit') return quiet.exit.reason;
  if (quiet.printed !== 'held')
    return `A test box did not hold: ${quiet.printed.replace(/\n?held$/, '').replaceAll('\n', ', ') || quiet.complaint || 'no answer'}.`;
  // One after the other: where processes are counted by user, the second takes them from the first.
  const hoard = await run(['/usr/bin/tail', '-n', '1', '/dev/zero']);
  if (hoard.exit.termination !== 'memory')
    return `A test program that takes all memory was not stopped by its limit (${hoard.exit.reason ?? hoard.exit.termination}).`;
  const forks = await run(['/bin/sh', '-c', FORKS]);
  return forks.printed.includes('all') ? 'A test program could start more processes than its limit.' : null;
}
