import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Writable } from 'node:stream';
import type { Cgroup } from './cgroups.ts';
import { isRoot, type Machine } from './machine.ts';

/** Shell script: $1 is the node. When it dies from now on, this dies; when it died before, this is another's child by now. */
const LIVE = '[ "$PPID" = "$1" ] || exit 125; shift; ';
/** Shell script: joins the control groups up to `--`, and becomes the rest. */
const ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"';
/** Shell script: waits for an order, which is a line of shell, and becomes it. A process of its own reads: a shell reads byte by byte. */
const WAIT = 'order=$("$1" <&6); [ -n "$order" ] || exit 125; eval "exec 6<&-; $order"';

/**
 * A process that has entered all that does not depend on what it will run: it dies with the node, belongs to the user and to the
 * control groups of a box, sees the node's folder, has no environment and no descriptor but those of a box. It waits to be told the program.
 */
export class Launcher {
  readonly child: ChildProcess;
  readonly cgroup: Cgroup | null;
  readonly uid: number;
  /** Resolves with what went wrong, or null; never rejects. The process becomes the box, so this is also the end of the box. */
  readonly ended: Promise<Error | null>;
  #hasEnded = false;

  private constructor(child: ChildProcess, cgroup: Cgroup | null, uid: number) {
    this.child = child;
    this.cgroup = cgroup;
    this.uid = uid;
    this.ended = new Promise<Error | null>((resolve) => {
      child.once('exit', () => resolve(null));
      child.once('error', resolve);
    });
    void this.ended.then(() => {
      this.#hasEnded = true;
    });
    for (const stream of child.stdio) stream?.on('error', () => {});
  }

  /**
   * `mark`: an argument by which the next node finds what this one left. `through`: a command that becomes the one behind it. `groups`: the
   * only ones that its user belongs to.
   */
  static async start(
    machine: Machine,
    {
      mark,
      through,
      cgroup,
      uid,
      groups = [],
    }: { mark: string; through: readonly string[]; cgroup: Cgroup | null; uid: number; groups?: readonly number[] },
  ): Promise<Launcher> {
    const { tools, shell, inherited, window } = machine;
    const close = inherited.length === 0 ? '' : `exec ${inherited.map((fd) => `${fd}>&-`).join(' ')}; `;
    // A change of users takes back that it dies with the node.
    const member = groups.length === 0 ? '--clear-groups' : `--groups=${groups.join()}`;
    const user = ['--pdeathsig=KILL', `--reuid=${uid}`, `--regid=${uid}`, member, '--no-new-privs'];
    const [program, ...args] = [
      ...[tools.setpriv, '--pdeathsig', 'KILL', '--'],
      ...(window === null ? [] : [tools.asRoot!.nsenter, `--mount=/proc/${process.pid}/fd/${window.fd}`, '--']),
      ...[...shell, '-c', `${LIVE}${close}${ENTER}`, 'sh', String(process.pid)],
      ...[...(cgroup?.entrances ?? []), '--'],
      ...(tools.asRoot === null ? [] : [tools.setpriv, ...user]),
      ...through,
      ...[tools.env, '-i', '/bin/sh', '-c', WAIT, 'sh', tools.cat, mark],
    ];
    const filter = await open(machine.filter, 'r');
    try {
      const child = spawn(program!, args, {
        env: {},
        cwd: '/',
        detached: true,
        stdio: ['pipe', 'pipe', 'pipe', 'pipe', filter.fd, 'pipe', 'pipe'],
      });
      return new Launcher(child, cgroup, uid);
    } finally {
      await filter.close();
    }
  }

  get isAlive(): boolean {
    return !this.#hasEnded;
  }

  /** Becomes this command. Descriptors: 3 the control socket, unless it is to have none, 4 the seccomp filter, 5 the status. */
  exec(machine: Machine, command: readonly string[], { hasControl }: { readonly hasControl: boolean }): void {
    const words = machine.isShellTalkative ? [machine.tools.env, '-i', ...command] : command;
    const order = `${hasControl ? '' : 'exec 3<&-; '}exec ${words.map(quoted).join(' ')}\n`;
    (this.child.stdio as readonly unknown[] as readonly Writable[])[6]!.end(order);
  }

  /** Ends it if it has not ended, and removes the groups. */
  async discard(): Promise<void> {
    if (this.isAlive) {
      this.child.kill('SIGKILL');
      for (const stream of this.child.stdio) stream?.destroy();
      await this.ended;
    }
    await this.cgroup?.remove();
  }
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

/** Processes and threads of the node's user, where the limit on them counts all that he runs. */
export function userTasks(): number {
  if (isRoot()) return 0;
  const uid = process.getuid!();
  let tasks = 0;
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      // At once for all: waiting for each takes ten times as long.
      const status = readFileSync(`/proc/${name}/status`, 'latin1');
      if (Number(/^Uid:\t(\d+)/m.exec(status)?.[1]) === uid) tasks += Number(/^Threads:\t(\d+)/m.exec(status)?.[1]);
    } catch {
      // gone meanwhile
    }
  }
  return tasks;
}
