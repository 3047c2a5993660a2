import threading

import torch

import djepa_mm

recipe = djepa_mm.load_recipe("digits", {"optim.minutes": 0.5})
training = threading.Thread(target=djepa_mm.train, args=(recipe, "runs/first-steps"))
training.start()
training.join()
model = djepa_mm.load("runs/first-steps")
sevens = model.generate(class_=7, count=16)
edited = model.edit(sevens[0], class_=9, mask=torch.arange(8).expand(8, 8) >= 4)  # the right half anew
tokens = model.encode(edited)
print(sevens.save("sevens")[-1], edited.save("edited.png"), tokens.values.shape)
