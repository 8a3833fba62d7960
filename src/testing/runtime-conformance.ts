import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { Assets, TreeEntry } from '../capabilities/assets.ts';
import type { RunRequest, RunResult, Runtime, SandboxPolicy } from '../capabilities/vm.ts';

/** A file's bytes, or a symlink. */
export type TreeContent = Uint8Array | { readonly link: string };

/** Trees in memory, as the content store lends them. */
export class MemoryTrees implements Pick<Assets, 'tree' | 'readFile'> {
  readonly #trees = new Map<Digest, Readonly<Record<string, TreeContent>>>();

  add(files: Readonly<Record<string, TreeContent>>): Digest {
    const digest = digestOf(Buffer.from(JSON.stringify([this.#trees.size, Object.keys(files)])));
    this.#trees.set(digest, files);
    return digest;
  }

  remove(layer: Digest): void {
    this.#trees.delete(layer);
  }

  async tree(layer: Digest): Promise<readonly TreeEntry[]> {
    return Object.entries(this.#files(layer)).map(([path, content]) =>
      content instanceof Uint8Array
        ? { path, kind: 'file', size: content.length, executable: false }
        : { path, kind: 'symlink', size: 0, executable: false, target: content.link },
    );
  }

  async *readFile(layer: Digest, path: string): AsyncIterable<Uint8Array> {
    const content = this.#files(layer)[path];
    if (!(content instanceof Uint8Array)) throw new HyperMeshError('file-not-found', `The tree has no file "${path}".`);
    for (let at = 0; at < content.length; at += 2 ** 20) yield content.subarray(at, at + 2 ** 20);
  }

  #files(layer: Digest): Readonly<Record<string, TreeContent>> {
    const files = this.#trees.get(layer);
    if (files === undefined) throw new HyperMeshError('blob-not-found', `There is no blob ${layer}.`);
    return files;
  }
}

/** Entries in one layer, written in the language of the runtime. */
export interface RuntimePrograms {
  readonly layer: Digest;
  /** Prints its standard input. */
  readonly echo: string;
  /** Ends with status 7. */
  readonly seven: string;
  /** Never ends. */
  readonly spin: string;
  /** Prints letters without end. */
  readonly flood: string;
  /** Prints `ESC [ 3 1 m red` on standard error. */
  readonly complain: string;
  /** Prints the file whose path is its first argument; ends with a status other than 0 when it cannot open it. */
  readonly read: string;
  /** Takes memory without end, and traps when it gets no more. */
  readonly hoard: string;
  /** Prints its environment as `NAME=value` followed by a zero byte, one after the other. */
  readonly environment: string;
  /** Not a program. */
  readonly broken: string;
}

export interface RuntimeFixture extends AsyncDisposable {
  readonly runtime: Runtime;
  readonly trees: MemoryTrees;
  readonly programs: RuntimePrograms;
  /** Where {@link SMALL_POLICY} is not enough for the runtime. */
  readonly policy?: Partial<SandboxPolicy>;
}

export const SMALL_POLICY: SandboxPolicy = {
  memoryBytes: 16 * 2 ** 20,
  cpuCores: 1,
  // On a machine with other work to start an interpreter takes minutes.
  wallMs: 600_000,
  outputBytes: 64 * 1024,
  tmpBytes: 2 ** 20,
  network: 'none',
  environment: {},
  mounts: [],
};

/** What every runtime promises, whatever the language. */
export function testRuntime(
  name: string,
  make: () => Promise<RuntimeFixture>,
  /** `skip`: why this machine cannot run it. */
  { skip = false }: { readonly skip?: string | false } = {},
): void {
  describe(`runtime ${name}`, { skip }, () => {
    let fixture: RuntimeFixture;
    before(async () => {
      fixture = await make();
    });
    after(() => fixture[Symbol.asyncDispose]());

    const request = (
      entry: string,
      more: { policy?: Partial<SandboxPolicy>; args?: string[]; input?: Json } = {},
    ): RunRequest => ({
      kind: fixture.runtime.kind,
      layer: fixture.programs.layer,
      entry,
      args: more.args ?? [],
      input: more.input ?? null,
      policy: { ...SMALL_POLICY, ...fixture.policy, ...more.policy },
    });
    const run = (...args: Parameters<typeof request>): Promise<RunResult> => fixture.runtime.run(request(...args));

    it('says that it is available, and which version it is', async () => {
      const status = await fixture.runtime.probe();
      assert.deepEqual([status.available, status.reason, typeof status.version], [true, null, 'string']);
    });

    it('passes JSON in and out, and measures', async () => {
      const input = { text: 'ünï\u0000code', list: [1, 2.5, null, true], deep: { a: { b: {} } } };
      const result = await run(fixture.programs.echo, { input });
      assert.deepEqual(result.output, input);
      assert.deepEqual([result.termination, result.exitCode, result.reason, result.text], ['exit', 0, null, null]);
      assert.ok(result.usage.peakProcessBytes > 0);
      for (const limit of ['isolation', 'memory', 'cpu', 'wall', 'output', 'tmp', 'files', 'network'])
        assert.ok(result.enforcedBy[limit], `enforcedBy.${limit}`);
    });

    it('gives the exit status of a program that fails as a result', async () => {
      const result = await run(fixture.programs.seven);
      assert.deepEqual([result.termination, result.exitCode], ['exit', 7]);
    });

    it('stops a program that does not end', async () => {
      const result = await run(fixture.programs.spin, { policy: { wallMs: 200 } });
      assert.deepEqual([result.termination, result.exitCode], ['timeout', null]);
      assert.match(result.reason ?? '', /200 ms/);
    });

    it('stops a program that prints too much', async () => {
      const result = await run(fixture.programs.flood);
      assert.equal(result.termination, 'output');
      assert.ok((result.text ?? '').length <= SMALL_POLICY.outputBytes);
    });

    it('stops or fails a program that takes too much memory', async () => {
      const result = await run(fixture.programs.hoard);
      assert.equal(result.termination, 'memory');
      assert.ok(result.usage.peakMemoryBytes <= (fixture.policy?.memoryBytes ?? SMALL_POLICY.memoryBytes));
      assert.match(result.reason ?? '', /memory|bytes/);
    });

    it('makes control characters on standard error visible', async () => {
      const result = await run(fixture.programs.complain);
      assert.equal(result.stderr, '\\x1b[31mred');
    });

    it('passes on standard error as it comes', async () => {
      const logs: string[] = [];
      await fixture.runtime.run(request(fixture.programs.complain), {
        onProgress: ({ log }) => void logs.push(log ?? ''),
      });
      assert.equal(logs.join(''), '\\x1b[31mred');
    });

    it('shows the package, what it depends on, and no file of the host', async () => {
      const layer = fixture.trees.add({ 'greetings/en.json': Buffer.from('"hello"') });
      const mounts = [{ layer, at: '/packages/ada/words' }];
      const read = (path: string) => run(fixture.programs.read, { policy: { mounts }, args: [path] });
      assert.equal((await read('packages/ada/words/greetings/en.json')).output, 'hello');
      assert.notEqual((await read(`package/${fixture.programs.broken}`)).text, null);
      for (const path of [
        '/etc/passwd',
        'etc/passwd',
        '../etc/passwd',
        'package/../../etc/passwd',
        'proc/1/root/etc/passwd',
      ])
        assert.notEqual((await read(path)).exitCode, 0, path);
    });

    it('gives the environment of the policy and nothing of its own', async () => {
      const result = await run(fixture.programs.environment, { policy: { environment: { LANG: 'C', B: 'x=y' } } });
      assert.deepEqual(new Set(result.text?.split('\\x00').filter(Boolean)), new Set(['LANG=C', 'B=x=y']));
    });

    it('stops when the caller gives up', async () => {
      const controller = new AbortController();
      const running = fixture.runtime.run(request(fixture.programs.spin), { signal: controller.signal });
      setTimeout(() => controller.abort(), 100);
      const outcome = await running.then(
        (result) => result.termination,
        (error: unknown) => (isCoded(error) ? error.code : error),
      );
      assert.equal(outcome, 'cancelled');
      await assert.rejects(fixture.runtime.run(request(fixture.programs.echo), { signal: controller.signal }), {
        code: 'cancelled',
      });
    });

    it('refuses what is not a program, and an entry that is not there', async () => {
      await assert.rejects(run(fixture.programs.broken), { code: 'program-invalid' });
      await assert.rejects(run('no/such/file'), { code: 'entry-missing' });
    });
  });
}
