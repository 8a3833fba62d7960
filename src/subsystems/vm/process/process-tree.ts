import { readdirSync, readFileSync } from 'node:fs';

export interface TreeMeasure {
  readonly residentBytes: number;
  readonly cpuMs: number;
  readonly processes: number;
}

/** What a process and all that descend from it hold now, read from `/proc`; for where no control group counts it. */
export function measureTree(root: number): TreeMeasure {
  const children = new Map<number, { pid: number; residentBytes: number; cpuMs: number }[]>();
  let self = { residentBytes: 0, cpuMs: 0 };
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid)) continue;
    const stat = statOf(pid);
    if (stat === null) continue;
    if (pid === root) self = stat;
    const siblings = children.get(stat.parent);
    if (siblings === undefined) children.set(stat.parent, [stat]);
    else siblings.push(stat);
  }
  const measure = { ...self, processes: 1 };
  const waiting = [root];
  for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
    for (const child of children.get(at) ?? []) {
      measure.residentBytes += child.residentBytes;
      measure.cpuMs += child.cpuMs;
      measure.processes += 1;
      waiting.push(child.pid);
    }
  }
  return { residentBytes: measure.residentBytes, cpuMs: measure.cpuMs, processes: measure.processes };
}

const PAGE_BYTES = pageBytes();

function statOf(pid: number) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return {
      pid,
      parent: Number(fields[1]),
      // Its own time and that of the children it waited for, in ticks of 10 ms.
      cpuMs: fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) * 10,
      residentBytes: Number(fields[21]) * PAGE_BYTES,
    };
  } catch {
    return null;
  }
}

/** Pages have 4, 16 or 64 KiB; the auxiliary vector says it (AT_PAGESZ is 6). */
function pageBytes(): number {
  try {
    const vector = readFileSync('/proc/self/auxv');
    for (let at = 0; at + 16 <= vector.length; at += 16)
      if (vector.readBigUInt64LE(at) === 6n) return Number(vector.readBigUInt64LE(at + 8));
  } catch {
    // not Linux
  }
  return 4_096;
}
