// The time that spans are shown against; it moves once a second while somebody looks.

class Clock {
  now = $state(Date.now());

  constructor() {
    setInterval(() => {
      if (document.visibilityState === "visible") this.now = Date.now();
    }, 1000);
  }
}

export const clock = new Clock();
