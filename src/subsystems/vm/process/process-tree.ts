import { existsSync, readdirSync, readFileSync } from 'node:fs';

export interface TreeMeasure {
  readonly residentBytes: number;
  readonly cpuMs: number;
  readonly processes: number;
  /** Whether all of them wait for something, by their first threads. */
  readonly isAsleep: boolean;
}

/** What a process and all that descend from it hold now, read from `/proc`; for where no control group counts it. */
export function measureTree(root: number): TreeMeasure {
  const childrenOf = KNOWS_CHILDREN ? childrenByTask : childrenAmong(everybody());
  const measure = { residentBytes: 0, cpuMs: 0, processes: 0, isAsleep: true };
  const waiting = [root];
  for (let pid = waiting.pop(); pid !== undefined; pid = waiting.pop()) {
    const stat = statOf(pid);
    if (stat === null) continue;
    measure.residentBytes += stat.residentBytes;
    measure.cpuMs += stat.cpuMs;
    measure.processes += 1;
    measure.isAsleep &&= stat.state === 'S';
    waiting.push(...childrenOf(pid));
  }
  return measure;
}

/** Not every kernel lists the children of a process. */
const KNOWS_CHILDREN = existsSync(`/proc/self/task/${process.pid}/children`);

/** Reads only what belongs to the tree, however many processes the machine runs. */
function childrenByTask(pid: number): number[] {
  return (attempt(() => readdirSync(`/proc/${pid}/task`)) ?? []).flatMap((task) => {
    const children = attempt(() => readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1')) ?? '';
    return children.split(' ').filter(Boolean).map(Number);
  });
}

/** Null when the process or thread is gone. */
function attempt<T>(read: () => T): T | null {
  try {
    return read();
  } catch {
    return null;
  }
}

function everybody(): ReadonlyMap<number, readonly number[]> {
  const children = new Map<number, number[]>();
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    const parent = Number.isInteger(pid) ? statOf(pid)?.parent : undefined;
    if (parent === undefined) continue;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [pid]);
    else siblings.push(pid);
  }
  return children;
}

function childrenAmong(children: ReadonlyMap<number, readonly number[]>): (pid: number) => readonly number[] {
  return (pid) => children.get(pid) ?? [];
}

const PAGE_BYTES = pageBytes();

function statOf(pid: number) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return {
      state: fields[0],
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
