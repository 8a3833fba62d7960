import type { MeteredModule } from './meter.ts';

/** Fuel between two looks at the clock: some milliseconds of work. */
const SLICE = 10_000_000n;

/** The counters that a metered module has. */
interface Account {
  /** Counted down by the module; below zero it asks for more. */
  readonly left: WebAssembly.Global<'i64'>;
  /** 1 after the module was refused memory. */
  readonly refused: WebAssembly.Global<'i32'>;
}

/** The budget of one run, handed out in slices to the modules that share it. */
export class Fuel {
  readonly #budget: bigint;
  readonly #look: () => void;
  readonly #onEmpty: () => never;
  readonly #accounts: Account[] = [];
  /** Handed out so far, what is left in the accounts included. */
  #granted = 0n;

  /** @param look called before each slice; may throw to stop the program. */
  constructor(budget: bigint, look: () => void, onEmpty: () => never) {
    this.#budget = budget;
    this.#look = look;
    this.#onEmpty = onEmpty;
  }

  /** Connects a module that was instantiated, before anything in it runs. */
  arm({ exports: names }: MeteredModule, exports: Readonly<Record<string, unknown>>): void {
    const account: Account = {
      left: exports[names.fuel] as WebAssembly.Global<'i64'>,
      refused: exports[names.refused] as WebAssembly.Global<'i32'>,
    };
    (exports[names.refill] as WebAssembly.Table).set(
      0,
      asFunction(() => this.#refill(account)),
    );
    this.#accounts.push(account);
  }

  /** For work of the host; before there is a module, nothing is paid. */
  charge(units: number): void {
    const account = this.#accounts[0];
    if (account === undefined) return;
    account.left.value -= BigInt(units);
    if (account.left.value < 0n) this.#refill(account);
  }

  get used(): bigint {
    const used = this.#accounts.reduce((sum, { left }) => sum - left.value, this.#granted);
    if (used > this.#budget) return this.#budget;
    return used;
  }

  get isMemoryRefused(): boolean {
    return this.#accounts.some(({ refused }) => refused.value === 1);
  }

  #refill(account: Account): void {
    while (account.left.value < 0n) {
      this.#look();
      if (this.#granted >= this.#budget) this.#takeBack();
      if (this.#granted >= this.#budget) this.#onEmpty();
      const rest = this.#budget - this.#granted;
      const slice = rest < SLICE ? rest : SLICE;
      this.#granted += slice;
      account.left.value += slice;
    }
  }

  /** What other modules have and do not use now. */
  #takeBack(): void {
    for (const { left } of this.#accounts) {
      if (left.value <= 0n) continue;
      this.#granted -= left.value;
      left.value = 0n;
    }
  }
}

// (module (import "h" "f" (func)) (export "f" (func 0)))
const WRAPPER = new WebAssembly.Module(
  Uint8Array.of(
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...[1, 4, 1, 0x60, 0, 0],
    ...[2, 7, 1, 1, 0x68, 1, 0x66, 0, 0],
    ...[7, 5, 1, 1, 0x66, 0, 0],
  ),
);

/** A table takes only functions of WebAssembly: `call` behind the smallest module that has one. */
function asFunction(call: () => void): unknown {
  return new WebAssembly.Instance(WRAPPER, { h: { f: call } }).exports['f'];
}
