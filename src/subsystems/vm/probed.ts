/** What a probe says, asked once. Only what works is remembered: what was missing may be there meanwhile. */
export class Probed<Status extends { readonly available: boolean }> {
  readonly #probe: () => Promise<Status>;
  #status: Promise<Status> | undefined;

  constructor(probe: () => Promise<Status>) {
    this.#probe = probe;
  }

  async status(): Promise<Status> {
    this.#status ??= this.#probe();
    const status = await this.#status;
    if (!status.available) this.#status = undefined;
    return status;
  }

  forget(): void {
    this.#status = undefined;
  }
}
