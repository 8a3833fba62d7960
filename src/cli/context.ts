import { EXIT, HyperMeshError } from '../base/errors.ts';
import type { Client } from '../client/index.ts';
import type { Flags, Loaded } from '../config.ts';
import type { Context } from './command.ts';
import { progressMode, showProgress } from './progress.ts';
import { oneLine } from './terminal.ts';

export interface OwnedContext extends Context, Disposable {
  /** Leaves the terminal as a finished line. */
  endProgress(): void;
}

/** A second Ctrl-C within this time is the first one, passed on by a process between us and the terminal. */
const ECHO_MS = 500;

export function createContext(options: Flags & { readonly json?: boolean; readonly verbose?: boolean }): OwnedContext {
  const interrupted = new AbortController();
  let interruptedAt = 0;
  const interrupt = () => {
    if (interrupted.signal.aborted && performance.now() - interruptedAt > ECHO_MS) process.exit(EXIT.interrupted);
    if (interrupted.signal.aborted) return;
    interruptedAt = performance.now();
    interrupted.abort(new HyperMeshError('cancelled', 'Interrupted.'));
  };
  for (const signal of STOP_SIGNALS) process.on(signal, interrupt);

  const mode = progressMode(process.stderr, options.verbose === true);
  const view = showProgress(process.stderr, mode);
  const { home, http, logLevel, passphraseFile } = options as Flags;
  const flags: Flags = { home, http, logLevel, passphraseFile };
  let loaded: Promise<Loaded> | undefined;

  const context: OwnedContext = {
    flags,
    json: options.json === true,
    signal: interrupted.signal,
    onProgress: (progress) => view.show(progress),
    load: () => (loaded ??= import('../config.ts').then(({ loadConfig }) => loadConfig(flags))),
    async withNode<T>(work: (client: Client) => Promise<T>): Promise<T> {
      const [configuration, { connect }, { askPassphrase }] = await Promise.all([
        context.load(),
        import('./connect.ts'),
        import('./ask.ts'),
      ]);
      const { signal, note } = context;
      await using connection = await connect(configuration, { signal, note, passphrase: askPassphrase });
      return await work(connection.client);
    },
    note(text) {
      view.end();
      process.stderr.write(`${oneLine(text, 500)}\n`);
    },
    endProgress: () => view.end(),
    [Symbol.dispose]() {
      view[Symbol.dispose]();
      for (const signal of STOP_SIGNALS) process.off(signal, interrupt);
    },
  };
  return context;
}

const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
